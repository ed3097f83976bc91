"""Live news of the cluster: what happens is told on the bus, and handed on to this process's clients of ``/v0/ws``."""

from __future__ import annotations

import asyncio
import logging

from llmlb.bus.connection import Bus
from llmlb.bus.errors import NodeBusy
from llmlb.bus.messages.pulls import PullProgress
from llmlb.bus.tasks import Background
from llmlb.router.fleet import Fleet
from llmlb.router.hub.board import is_over
from llmlb.router.hub.hub import ModelHub
from llmlb.router.live_feed import MOST_BEHIND, MOST_CLIENTS, Feed, Feeds
from llmlb.router.live_log import KEPT, EventLog
from llmlb.router.live_teller import Teller

log = logging.getLogger("llmlb.router.live")

EVERY_S = 0.5
"""Between two messages about how far a download is, at least."""


class Live:
    """:meth:`start` after the fleet and the models; :meth:`end_clients` before the gateway stops."""

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        hub: ModelHub,
        version: str,
        *,
        kept: int = KEPT,
        most_behind: int = MOST_BEHIND,
    ) -> None:
        self._bus, self._hub = bus, hub
        self.log = EventLog(bus, kept=kept)
        self.feeds = Feeds(self.log, version, lambda: bus.connected, most_behind=most_behind)
        self._teller = Teller(fleet, hub, self.log)
        self._moved: dict[str, PullProgress] = {}
        """Downloads that were told of since the last round: as many as run."""
        self._said_bus = True
        self.ending = asyncio.Event()
        """The gateway ends: clients shall go."""
        self._background = Background("live")

    async def start(self) -> None:
        """Read what was told before within 3 s, or behind it."""
        await self.log.start()
        self._teller.start()
        self._hub.board.on_change.append(self._on_task)
        self._background.forever(self._run, "rounds")

    def end_clients(self) -> None:
        """Tell every client that this gateway ends."""
        self.ending.set()

    async def close(self) -> None:
        self.ending.set()
        await self._background.close()
        await self.log.close()

    @property
    def full(self) -> bool:
        """No further client is taken."""
        return len(self.feeds) >= MOST_CLIENTS

    def open(self, kinds: frozenset[str], after: int | None, stream: str | None) -> Feed:
        """A feed for a client, to be closed. Raises NodeBusy when there are too many."""
        if self.full:
            raise NodeBusy("too many clients listen to events at this gateway")
        if not len(self.feeds):
            self._said_bus = self._bus.connected  # the first message to the client says it
        return self.feeds.open(kinds, after, stream)

    def _on_task(self, task: PullProgress) -> None:
        if is_over(task):
            self._moved.pop(f"{task.node_id}.{task.task_id}", None)
        elif len(self.feeds):
            self._moved[f"{task.node_id}.{task.task_id}"] = task

    async def _run(self) -> None:
        while True:
            if not self.feeds.any.is_set():
                self._moved.clear()  # what nobody was told in time is no news later
                await self.feeds.any.wait()
            await asyncio.sleep(EVERY_S)
            connected = self._bus.connected
            if connected != self._said_bus:
                self._said_bus = connected
                self.feeds.say_bus(connected=connected)
            moved, self._moved = self._moved, {}
            for task_id, task in moved.items():
                # A status comes with the stream; what is said of it before or after would be news from yesterday.
                if self._teller.task_is_told(task_id, task):
                    self.feeds.say_task(self._teller.task_event(task))
