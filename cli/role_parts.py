"""What a router's and a node's part of a process have alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

import llmlb
from llmlb.bus.connection import Bus
from llmlb.router.fleet import Fleet
from llmlb.router.gateway.metrics import Exposition
from llmlb.router.history_process import HistoryProcess
from llmlb.router.identity.directory import Directory
from llmlb.router.metrics import Metrics
from llmlb.router.siblings import Siblings

log = logging.getLogger("llmlb.cli.serve")


class Ready:
    """Green when the bus is reachable, everything behind the gateway has begun, and it is known who may."""

    def __init__(self, bus: Bus, directory: Directory) -> None:
        self._bus = bus
        self._directory = directory
        self.started = False

    @property
    def ready(self) -> bool:
        return self.started and self._bus.connected and self._directory.known


def exposition(
    role: str,
    metrics: Metrics,
    bus: Bus,
    fleet: Fleet,
    history: HistoryProcess | None = None,
    siblings: Siblings | None = None,
) -> Exposition:
    made = Exposition(
        metrics,
        bus,
        fleet.nodes,
        build=(role, llmlb.__version__),
        breakers=fleet.loads.breakers.states,
        history=history,
        siblings=siblings,
    )
    if siblings is not None:
        siblings.own = made.own
    return made


async def each(*ends: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """One after the other, whatever fails of them: the rest has to be ended too."""
    for end in ends:
        try:
            await end()
        except Exception:  # said; a process that ends can do nothing more about it
            log.exception("stop_failed")
