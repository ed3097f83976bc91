"""What a measured pull needs: a big file, a hub in a process of its own, a bus, and a node that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench import machine
from tests.bench.children import announced, environ, module
from tests.support.cluster import Cluster, Process, cluster
from tests.support.natsd import NatsServer
from tests.support.pulls import gguf_bytes

REPO, FILE = "bench/big", "big-Q4_K_M.gguf"
MODEL = f"{REPO}:Q4_K_M"
PULL_S = 180.0
LOOK_S = 0.002


def write_big(path: Path, size: int) -> None:
    """A GGUF header and noise, on the disk when this returns."""
    with path.open("wb") as file:
        file.write(gguf_bytes(4096))
        while (left := size - file.tell()) > 0:
            file.write(os.urandom(min(left, 1 << 22)))
        file.flush()
        os.fsync(file.fileno())


class HubChild:
    """The hub's process."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.url = str(self._ask()["url"])

    def _ask(self) -> dict[str, object]:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(b"\n")
        self._popen.stdin.flush()
        return dict(json.loads(self._popen.stdout.readline()))

    def served(self) -> int:
        """Bytes of files that its sockets have taken so far."""
        return int(str(self._ask()["served"]))


@dataclass(frozen=True)
class Taken:
    """What something took, in seconds."""

    wall: float
    cpu: float


def timed(command: Sequence[str]) -> Taken:
    """A command from its start to its end. Raises RuntimeError when it fails."""
    began = time.perf_counter()
    popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(popen.pid, 0)
    wall = time.perf_counter() - began
    popen.returncode = os.waitstatus_to_exitcode(status)
    if popen.returncode:
        raise RuntimeError(f"{command!r} ended with {popen.returncode}")
    return Taken(wall, usage.ru_utime + usage.ru_stime)


class Site:
    """Hub, bus and cluster."""

    def __init__(self, root: Path, size: int, hub: HubChild, it: Cluster, client: httpx.Client) -> None:
        self.root, self.size, self.hub, self.it = root, size, hub, it
        self._client = client
        self.node: Process

    @property
    def installed(self) -> Path:
        return self.root / "node" / "models" / REPO / FILE

    def start(self) -> None:
        """A node, on the home that is there."""
        self.node = self.it.start("node", "serve", home="node").wait_ready()

    def begin(self) -> str:
        """The id of a pull that has just begun."""
        answer = self._client.post(f"{self.node.node_url}/v0/models/pull", json={"model": REPO})
        if answer.status_code != 202:
            raise RuntimeError(f"the pull was refused: {answer.text}")
        return str(answer.json()["task"]["task_id"])

    def over(self, task: str) -> None:
        """Wait until it is; looks at the file until that is there, so that looking costs the node nothing."""
        deadline = time.monotonic() + PULL_S
        while not self.installed.exists():
            self._in_time(deadline, task)
            time.sleep(LOOK_S)
        while (status := self._status(task)) != "completed":
            if status in ("failed", "cancelled"):
                raise RuntimeError(f"the pull {status}: {self.node.output()[-1500:]}")
            self._in_time(deadline, task)
            time.sleep(LOOK_S)

    def _in_time(self, deadline: float, task: str) -> None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the pull is {self._status(task)} after {PULL_S:.0f} s: {self.node.output()[-1500:]}")

    def _status(self, task: str) -> str:
        answer = self._client.get(f"{self.node.node_url}/v0/tasks/{task}")
        return str(answer.json().get("status", "unknown"))

    def remove(self) -> None:
        """The model is gone again, and what was written is on the disk, so that nobody else waits for it."""
        done = self.it.cli("node", "rm", MODEL, host=f"127.0.0.1:{self.node.node_port}")
        if done.returncode:
            raise RuntimeError(f"rm: {done.stderr}")
        os.sync()

    def pull(self) -> Taken:
        """A whole pull, from the request to its success; CPU of the node's process."""
        os.sync()
        pid = self.node.popen.pid
        before, began = machine.cpu_s(pid), time.perf_counter()
        self.over(self.begin())
        taken = Taken(time.perf_counter() - began, machine.cpu_s(pid) - before)
        self.remove()
        return taken

    def curl(self) -> dict[str, Taken]:
        """The same file from the same server with curl; then its sha256, and what is not on the disk yet."""
        target = self.root / "curled"
        os.sync()
        fetched = timed(["curl", "-sSL", "-o", str(target), f"{self.hub.url}/{REPO}/resolve/main/{FILE}"])
        if target.stat().st_size != self.size:
            raise RuntimeError("curl did not fetch the whole file")
        synced = timed(["sync", str(target)])
        summed = timed(["sha256sum", str(target)])
        target.unlink()
        os.sync()
        return {"curl": fetched, "sync": synced, "sha256sum": summed}

    def fetched_twice(self, share: float) -> int:
        """Bytes that come twice when the node is killed with this share of them out, and started again."""
        before = self.hub.served()
        task = self.begin()
        while self.hub.served() - before < share * self.size:
            time.sleep(LOOK_S)
        self.node.kill()
        self.start()
        self.over(task)
        twice = self.hub.served() - before - self.size
        self.remove()
        return twice


@contextlib.contextmanager
def site(root: Path, size: int) -> Iterator[Site]:
    """Everything ready, with a node."""
    if shutil.which("curl") is None:
        raise RuntimeError("no curl to compare with")
    big = root / "big"
    write_big(big, size)
    bus = NatsServer(root / "bus").start()
    command = module("tests.bench.hub_child", str(big), REPO, FILE)
    try:
        with announced(command, root / "hub.log", environ(root)) as popen:
            hub = HubChild(popen)
            cluster_of_one = cluster(root, HF_ENDPOINT=hub.url, LLMLB_EMBEDDED_BUS="false")
            # One client: to make another reads all certificates, 20 ms that are no part of a pull.
            with httpx.Client(timeout=30) as client, cluster_of_one as it:
                it.bus_port = bus.port
                made = Site(root, size, hub, it, client)
                made.start()
                yield made
    finally:
        bus.stop()
