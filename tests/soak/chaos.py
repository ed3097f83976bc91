"""What goes wrong, at random, and when it went wrong: at least two nodes and one router are always well."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tests.support.cluster import Process, wait_until
from tests.support.simcluster import SimCluster, SimNode, serving

What = Literal["bus", "router"]

PAUSE_S = (1.0, 5.0)
"""Between two faults."""
WELL = 2
"""Nodes that are left alone."""
HEAL_S = 8.0
"""After its cause is over, an error is still excused for so long: reconnection, heartbeats, settling."""


@dataclass
class Window:
    """A time in which errors are expected. Seconds of the monotonic clock."""

    what: What
    url: str
    """Of the router, for one that was killed."""
    began: float
    ended: float = float("inf")


@dataclass
class Chaos:
    """Runs in the thread that calls :meth:`run`; node faults heal in threads of their own."""

    cluster: SimCluster
    steady: Process
    mortal: Process
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)
    windows: list[Window] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Things that did not come back."""
    _hurt: dict[str, threading.Thread] = field(default_factory=dict)

    def run(self, until: float) -> None:
        """Do one thing after the other until then, and return when all of it is mended."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (lambda: self._node("kill", self._kill), 5),
            (lambda: self._node("stop", self._stop), 3),
            (lambda: self._node("drain", self._drain), 3),
            (self._bus, 1),
            (self._router, 1),
        ]
        acts, weights = zip(*kinds, strict=True)
        while time.monotonic() < until:
            self.rng.choices(acts, weights)[0]()
            time.sleep(self.rng.uniform(*PAUSE_S))
        for thread in list(self._hurt.values()):
            thread.join(60)

    # Nodes

    def _node(self, kind: str, act: Callable[[SimNode], SimNode]) -> None:
        well = [node for node in self.cluster.nodes if node.name not in self._hurt]
        if len(well) <= WELL:
            return
        node = self.rng.choice(well)
        self.done[f"node {kind}"] += 1
        thread = threading.Thread(target=self._heal, args=(node, kind, act), name=f"heal-{node.name}")
        self._hurt[node.name] = thread
        thread.start()

    def _heal(self, node: SimNode, kind: str, act: Callable[[SimNode], SimNode]) -> None:
        try:
            again = act(node)
            wait_until(lambda: serving(self.steady, again), 60, f"{node.name} is back after {kind}")
        except Exception as error:  # noqa: BLE001  # the top of a thread: it belongs into the table
            self.failures.append(f"{kind} of {node.name}: {error!r}"[:500])
        finally:
            del self._hurt[node.name]

    def _kill(self, node: SimNode) -> SimNode:
        node.kill()
        time.sleep(self.rng.uniform(0, 5))
        return self.cluster.restart_node(node)

    def _stop(self, node: SimNode) -> SimNode:
        node.suspend()
        time.sleep(self.rng.uniform(0.5, 10))
        node.go_on()
        return node

    def _drain(self, node: SimNode) -> SimNode:
        node.stop()
        return self.cluster.restart_node(node)

    # Bus and router

    @contextlib.contextmanager
    def _window(self, what: What, url: str = "") -> Iterator[None]:
        window = Window(what, url, time.monotonic())
        self.windows.append(window)
        try:
            yield
        finally:
            window.ended = time.monotonic() + HEAL_S

    def _bus(self) -> None:
        self.done["bus restart"] += 1
        with self._window("bus"):
            self.cluster.bus.kill()
            time.sleep(self.rng.choice([0.0, 1.0, 3.0, 8.0]))
            self.cluster.bus.start()
            wait_until(self.steady.ready, 30, "the steady router has the bus again")

    def _router(self) -> None:
        self.done["router restart"] += 1
        with self._window("router", self.mortal.url):
            self.mortal.kill()
            self.cluster.routers.remove(self.mortal)
            time.sleep(self.rng.uniform(0, 2))
            self.mortal = self.cluster.start_router("mortal", port=self.mortal.router_port or 0)
            wait_until(self.mortal.ready, 60, "the router is back")
