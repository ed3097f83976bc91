"""What answers chat requests in the router's benchmark: the backend itself, the floor, llmlb, and other routers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.bench import machine, peers
from tests.bench.children import Unavailable, announced, environ, module, running
from tests.bench.scripted import ENGINES, SPEEDS
from tests.support.cluster import free_port, wait_until
from tests.support.natsd import NatsServer

DIRECT, FLOOR, OURS = "direct", "floor", "llmlb"
START_S = 60.0


@dataclass(frozen=True)
class Target:
    """A port that answers, and the processes behind it: ``gateway`` is what is compared."""

    name: str
    port: int
    pids: dict[str, int] = field(default_factory=dict)

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far of each part, with everything it started."""
        return {part: sum(map(machine.cpu_exact_s, machine.family(pid))) for part, pid in self.pids.items()}

    def rss(self, part: str) -> int:
        """Resident memory in bytes of a part, with everything it started."""
        return sum(map(machine.rss, machine.family(self.pids[part])))


@contextlib.contextmanager
def backend(folder: Path) -> Iterator[Target]:
    port = free_port()
    with announced(module("tests.bench.backend", str(port)), folder / "backend.log", environ(folder)) as popen:
        yield Target(DIRECT, port, {"backend": popen.pid})


@contextlib.contextmanager
def floor(folder: Path, bus: NatsServer) -> Iterator[Target]:
    port, command = free_port(), module("tests.bench.floor")
    responder = [*command, "responder", bus.url]
    server = [*command, "server", bus.url, str(port)]
    assert bus.process is not None
    with (
        announced(responder, folder / "responder.log", environ(folder)) as behind,
        announced(server, folder / "floor.log", environ(folder)) as popen,
    ):
        yield Target(FLOOR, port, {"gateway": popen.pid, "bus": bus.process.pid, "backend": behind.pid})


def llmlb_environ(folder: Path, bus: NatsServer, **more: str) -> dict[str, str]:
    """Settings of llmlb's processes: everything as it comes, but a queue that takes 2,000 clients at once."""
    settings = {
        "LLMLB_HOME": str(folder / "home"),
        "LLMLB_BUS_URL": bus.url,
        "LLMLB_EMBEDDED_BUS": "false",
        "LLMLB_QUEUE_MAX": "5000",
    }
    return environ(folder, **{**settings, **more})


@contextlib.contextmanager
def router(folder: Path, bus: NatsServer) -> Iterator[tuple[int, int]]:
    """``llmlb router serve``, ready: port and process id."""
    port = free_port()
    env = llmlb_environ(folder, bus, LLMLB_ROUTER_PORT=str(port), LLMLB_ROUTER_BIND_ADDRESS="127.0.0.1")
    log = folder / "router.log"
    with running(module("llmlb", "router", "serve"), log, env) as popen:

        def ready() -> bool:
            if popen.poll() is not None:
                raise RuntimeError(f"the router ended with {popen.returncode}: {log.read_text()[-1500:]}")
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200
            return False

        wait_until(ready, START_S, "the router is ready")
        yield port, popen.pid


@contextlib.contextmanager
def nodes(folder: Path, bus: NatsServer, *groups: str) -> Iterator[int]:
    """Simulated nodes with their models, in one process: its id. ``groups``: of :mod:`tests.bench.sim_nodes`."""
    env = llmlb_environ(folder, bus, LLMLB_HOME=str(folder / "nodes"))
    with announced(module("tests.bench.sim_nodes", *groups), folder / "nodes.log", env) as popen:
        yield popen.pid


def online(port: int) -> int:
    """Nodes that a router gives work."""
    views = httpx.get(f"http://127.0.0.1:{port}/v0/nodes", timeout=30).json()["nodes"]
    return sum(1 for view in views if view["state"] == "online" and view["loaded_models"])


@contextlib.contextmanager
def llmlb(folder: Path, bus: NatsServer) -> Iterator[Target]:
    """A router with as many nodes as the backend has engines, of the same speed."""
    groups = [f"{model}:{ENGINES}:{speed}" for model, speed in SPEEDS.items()]
    assert bus.process is not None
    with router(folder, bus) as (port, pid), nodes(folder, bus, *groups) as behind:
        wait_until(lambda: online(port) == ENGINES * len(SPEEDS), START_S, "every node is online")
        wait_until(lambda: peers.answers(port), START_S, "llmlb answers")
        yield Target(OURS, port, {"gateway": pid, "bus": bus.process.pid, "backend": behind})


@contextlib.contextmanager
def bus(folder: Path) -> Iterator[NatsServer]:
    server = NatsServer(folder)
    try:
        yield server.start()
    finally:
        server.stop()


def start_all(
    stack: contextlib.ExitStack, folder: Path, wanted: set[str] | None
) -> tuple[list[Target], dict[str, str]]:
    """Every target that can be had, and why the others can't. ``wanted``: peers, by name; None is all."""
    http = stack.enter_context(backend(folder))
    targets = [http, stack.enter_context(floor(folder, stack.enter_context(bus(folder / "bus-floor"))))]
    targets.append(stack.enter_context(llmlb(folder, stack.enter_context(bus(folder / "bus")))))
    missing = {}
    for peer in peers.PEERS:
        if wanted is not None and peer.name not in wanted:
            continue
        try:
            port, popen = stack.enter_context(peers.started(peer, http.port, folder))
        except Unavailable as why:
            print(f"{peer.name}: {why}", file=sys.stderr, flush=True)
            missing[peer.name] = str(why)
        else:
            targets.append(Target(peer.name, port, {"gateway": popen.pid, "backend": http.pids["backend"]}))
    return targets, missing
