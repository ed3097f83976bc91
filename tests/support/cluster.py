"""Real llmlb processes for tests: each with a home, ports and a log of its own, ended by id at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.forks import Fork, can_be_forked, fork, run

START_TIMEOUT_S = 30.0
Popen = subprocess.Popen[bytes] | Fork


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str, *, every_s: float = 0.02) -> Any:
    """The first true value of ``condition``, looked at each ``every_s``. Fails with ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(every_s)


@dataclass
class Process:
    """One ``llmlb`` process."""

    popen: Popen
    log: Path
    router_port: int | None = None
    node_port: int | None = None

    @property
    def url(self) -> str:
        """Of its gateway: the router's if it has one."""
        return f"http://127.0.0.1:{self.router_port or self.node_port}"

    @property
    def node_url(self) -> str:
        return f"http://127.0.0.1:{self.node_port}"

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, and wait for it."""
        self.popen.kill()
        self.popen.wait(10)

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    def ready(self, url: str | None = None) -> bool:
        if self.popen.poll() is not None:
            raise AssertionError(f"the process ended with {self.popen.returncode}:\n{self.output()}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url or self.url}/ready", timeout=5).status_code == 200
        return False

    def wait_ready(self) -> Process:
        wait_until(self.ready, START_TIMEOUT_S, f"/ready of {self.url}; log:\n{self.output()}", every_s=0.05)
        return self


@dataclass
class Cluster:
    """Processes on one bus address. Everything started through it is ended by :meth:`close`."""

    root: Path
    bus_port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    forks: bool = True
    """False: each process begins with a new interpreter, as it does outside of tests; a second of CPU time more."""
    self_test: bool = False
    """True: a worker asks its model whether answers stay the same, as it does outside of tests; without that the node
    does not promise it, and nothing that it answers is taken over by another one. Five seconds of CPU time a load."""

    @property
    def bus_url(self) -> str:
        return f"nats://127.0.0.1:{self.bus_port}"

    def environ(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of one process: none of the outer LLMLB settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLMLB_", "XLLM_", "HF_", "OLLAMA_"))}
        return {
            **kept,
            "LLMLB_HOME": str(home),
            "LLMLB_BUS_URL": self.bus_url,
            "OLLAMA_MODELS": str(self.root / "no-ollama"),
            "LLMLB_CONTEXT_LENGTH": "1024",
            "LLMLB_NUM_PARALLEL": "2",
            "LLMLB_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "TESTS_SELF_TEST": "yes" if self.self_test else "no",
            **self.settings,
            **more,
        }

    def start(self, *command: str, home: str, **more: str) -> Process:
        """Start ``llmlb <command>`` with a home of this name and free ports; does not wait."""
        folder = self.root / home
        folder.mkdir(parents=True, exist_ok=True)
        router_port = free_port() if command[0] in ("serve", "router") else None
        node_port = free_port() if command[0] in ("serve", "node") else None
        env = self.environ(
            folder,
            LLMLB_ROUTER_PORT=str(router_port or 0),
            XLLM_PORT=str(node_port or 0),
            LLMLB_ROUTER_BIND_ADDRESS="127.0.0.1",
            XLLM_BIND_ADDRESS="127.0.0.1",
            **more,
        )
        log = self.root / f"{home}.{len(self.processes)}.log"
        process = Process(self.spawn("llmlb", *command, env=env, log=log), log, router_port, node_port)
        self.processes.append(process)
        return process

    def spawn(self, *command: str, env: dict[str, str], log: Path, inside: Sequence[str] = ()) -> Popen:
        """Start ``python -m <command>``. A fork where nothing speaks against it; ``inside``: what comes before it."""
        with log.open("wb") as out, open(os.devnull, "rb") as nothing:
            if self.forks and not inside and can_be_forked(command[0], env):
                return fork(*command, env=env, stdin=nothing.fileno(), stdout=out.fileno(), stderr=out.fileno())
            return subprocess.Popen(
                [*inside, sys.executable, "-m", *command],
                env=env,
                stdin=nothing,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def cli(self, *command: str, host: str | None = None, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        """Run a client command to its end."""
        more = {} if host is None else {"LLMLB_HOST": host}
        return run("llmlb", *command, env=self.environ(self.root / "client", **more), timeout_s=timeout_s)

    def close(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.stop(15)
            if process.popen.poll() is None:
                process.kill()


@contextlib.contextmanager
def cluster(root: Path, *, forks: bool = True, self_test: bool = False, **settings: str) -> Iterator[Cluster]:
    """A cluster that is ended whatever happens."""
    it = Cluster(root, settings=settings, forks=forks, self_test=self_test)
    try:
        yield it
    finally:
        it.close()


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid`` (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    """True while the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
