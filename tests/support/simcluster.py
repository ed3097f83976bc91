"""A bus, routers and simulated nodes for fault tests: each a process that can be killed, stopped and started again."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.cluster import Cluster, Popen, Process, free_port, wait_until
from tests.support.natsd import NatsServer
from tests.support.traffic import Traffic

START_S = 40.0
MODEL = "simulated/one"
LOOPBACK = "127.0.0.1"


@dataclass
class SimNode(Process):
    """A simulated node's process."""

    name: str = ""
    node_id: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def up(self) -> bool:
        """It has a bus and its models."""
        return f"ready {self.node_id}" in self.output()

    def suspend(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.popen.send_signal(signal.SIGCONT)


class SimCluster:
    """A NATS server of its own, and what is started on it. Everything is ended by :meth:`close`."""

    def __init__(self, root: Path, *, bus_host: str = LOOPBACK, self_test: bool = False, **settings: str) -> None:
        """``bus_host``: where the bus listens; another one than loopback only inside a network namespace.

        ``self_test``: as :class:`Cluster` has it, for real nodes.
        """
        self.bus = NatsServer(root / "bus", host=bus_host).start()
        base = {"LLMLB_EMBEDDED_BUS": "false", "LLMLB_STALL_TIMEOUT": "6s", "LLMLB_DRAIN_TIMEOUT": "1s"}
        # In a network namespace a process has to be a child of the thread that is in it.
        forks = bus_host == LOOPBACK
        settings = {**base, **settings}
        self._cluster = Cluster(root, bus_port=self.bus.port, settings=settings, forks=forks, self_test=self_test)
        self._traffic: list[Traffic] = []
        self.root = root
        self.routers: list[Process] = []
        self.nodes: list[SimNode] = []
        self.real_nodes: list[Process] = []

    def _popen(self, command: list[str], home: str, inside: Sequence[str] = (), **env: str) -> tuple[Popen, Path]:
        folder = self.root / home
        folder.mkdir(parents=True, exist_ok=True)
        log = self.root / f"{home}.{len(self._cluster.processes)}.log"
        popen = self._cluster.spawn(*command, env=self._cluster.environ(folder, **env), log=log, inside=inside)
        return popen, log

    def start_router(self, name: str = "router", *, port: int = 0, module: str = "llmlb", **env: str) -> Process:
        """``llmlb router serve``; does not wait. The same name: the same home."""
        port = port or free_port()
        popen, log = self._popen(
            [module, "router", "serve"],
            name,
            LLMLB_ROUTER_PORT=str(port),
            LLMLB_ROUTER_BIND_ADDRESS="127.0.0.1",
            **env,
        )
        router = Process(popen, log, router_port=port)
        self._cluster.processes.append(router)
        self.routers.append(router)
        return router

    def start_real_node(self, name: str, **env: str) -> Process:
        """``llmlb node serve`` with the demo model; does not wait."""
        node = self._cluster.start("node", "serve", home=name, **env)
        self.real_nodes.append(node)
        return node

    def start_node(
        self, name: str, *arguments: str, model: str = MODEL, inside: Sequence[str] = (), **env: str
    ) -> SimNode:
        """A simulated node; does not wait. ``arguments``: of :mod:`tests.support.sim_node`.

        ``inside``: what comes before its command, to run it in a network namespace.
        """
        node_id = uuid.uuid4().hex
        command = ["tests.support.sim_node", "--node-id", node_id, "--model", model, *arguments]
        popen, log = self._popen(command, name, inside, **env)
        node = SimNode(popen, log, name=name, node_id=node_id, arguments=("--model", model, *arguments))
        self._cluster.processes.append(node)
        self.nodes.append(node)
        return node

    def restart_node(self, node: SimNode) -> SimNode:
        """The same node once more: same id, same home; its process must have ended."""
        self.nodes.remove(node)
        command = ["tests.support.sim_node", "--node-id", node.node_id, *node.arguments]
        popen, log = self._popen(command, node.name)
        again = SimNode(popen, log, name=node.name, node_id=node.node_id, arguments=node.arguments)
        self._cluster.processes.append(again)
        self.nodes.append(again)
        return again

    def end_nodes(self, *nodes: SimNode) -> None:
        """SIGTERM them, and forget them."""
        for node in nodes:
            self.nodes.remove(node)
            node.popen.send_signal(signal.SIGTERM)
        for node in nodes:
            node.stop()

    def wait_ready(self, router: Process, *nodes: SimNode) -> None:
        """Until the router is ready and would give each of these nodes work."""
        wait_until(router.ready, START_S, f"/ready; log:\n{router.output()}")
        wait_until(lambda: all(serving(router, node) for node in nodes), START_S, "every node serves")

    def traffic(self, model: str = MODEL, **options: Any) -> Traffic:
        """Clients of the routers that run."""
        running = lambda: [one.url for one in self.routers if one.popen.poll() is None] or [self.routers[-1].url]  # noqa: E731
        made = Traffic(options.pop("urls", running), model, **options)
        self._traffic.append(made)
        return made

    def end_traffic(self) -> None:
        """Every client goes away, in the middle of its answer too."""
        with contextlib.ExitStack() as ends:
            while self._traffic:
                ends.callback(self._traffic.pop().close)

    def close(self) -> None:
        with contextlib.ExitStack() as ends:
            ends.callback(self.bus.stop)
            ends.callback(self._cluster.close)
            ends.callback(self._signal_all)
            ends.callback(self.end_traffic)

    def _signal_all(self) -> None:
        """To all at once, so that nobody is waited for one by one; what was stopped has to go on for that."""
        for process in self._cluster.processes:
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGCONT)
                process.popen.terminate()


@contextlib.contextmanager
def simcluster(
    root: Path, *, bus_host: str = LOOPBACK, self_test: bool = False, **settings: str
) -> Iterator[SimCluster]:
    """A cluster that is ended whatever happens."""
    it = SimCluster(root, bus_host=bus_host, self_test=self_test, **settings)
    try:
        yield it
    finally:
        it.close()


def views(router: Process) -> dict[str, dict[str, Any]]:
    """The router's nodes by id; empty while it does not answer."""
    with contextlib.suppress(httpx.TransportError):
        answer = httpx.get(f"{router.url}/v0/nodes", timeout=5)
        if answer.status_code == 200:
            return {view["node_id"]: view for view in answer.json()["nodes"]}
    return {}


def serving(router: Process, node: SimNode) -> bool:
    """Whether the router knows this very process, with its models in memory, and gives it work."""
    if node.popen.poll() is not None:
        raise AssertionError(f"node {node.name} ended with {node.popen.returncode}:\n{node.output()}")
    view = views(router).get(node.node_id)
    return node.up and view is not None and usable(view)


def usable(view: dict[str, Any]) -> bool:
    """Online with a model in memory, and neither suspect nor draining."""
    return view["state"] == "online" and not view["suspect"] and not view["draining"] and bool(view["loaded_models"])


def running(router: Process) -> dict[str, int]:
    """Requests on each node, by its last heartbeat."""
    return {node_id: view["running"] for node_id, view in views(router).items()}
