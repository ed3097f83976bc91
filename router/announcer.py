"""Says what happened to nodes: in the log, and as events in the stream LLMLB_EVENTS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable

import nats.errors

from llmlb.bus import subjects
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.events import NodeStateChanged
from llmlb.bus.streams import ensure_streams
from llmlb.bus.tasks import Background
from llmlb.router.membership import Transition

log = logging.getLogger("llmlb.router.announcer")

MOST_WAITING = 10_000
"""Events waiting for the bus; beyond that the oldest are dropped, and said to be."""
AGAIN_S = 2.0
FIRST_S = 3.0
ALIKE_S = 10.0
TRIES = 3


class Announcer:
    """Events are stored one after the other, in order; a bus that is away is waited for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: deque[tuple[NodeStateChanged, str]] = deque(maxlen=MOST_WAITING)
        self._dropped = 0
        self._closing = False
        self._wake = asyncio.Event()
        self._background = Background("announcer")

    async def start(self) -> None:
        """Make the streams, if that works within 3 s; what fails is tried again behind it, and after each outage."""
        made = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                made = await self._ensure()
        self._bus.on_up(self._ensure_again)
        self._background.start(self._run(made), "events")

    async def _ensure_again(self) -> None:
        await self._ensure()

    async def close(self) -> None:
        """What still waits is dropped."""
        # A cancellation can get lost in nats-py (see Background.close): the loops look for themselves.
        self._closing = True
        self._waiting.clear()
        self._wake.set()
        await self._background.close()

    def announce(self, moved: list[Transition], about: Callable[[str], tuple[str, str]]) -> None:
        """Nodes changed their state. ``about``: a node's host name and instance."""
        for step in moved:
            name, instance = about(step.node_id)
            log.info(
                "node_state_changed node=%s name=%s before=%s after=%s reason=%r",
                step.node_id[:12],
                name,
                step.before,
                step.after,
                step.reason,
            )
            self._dropped += len(self._waiting) == MOST_WAITING
            event = NodeStateChanged(
                node_id=step.node_id, name=name, before=step.before, after=step.after, reason=step.reason
            )
            # Every router sees the same and says it: stored once, as long as they do so within the same 10 seconds.
            once = f"{step.node_id}.{instance}.{step.before}.{step.after}.{int(event.sent_at / ALIKE_S)}"
            self._waiting.append((event, once))
            self._wake.set()

    async def _run(self, made: bool) -> None:
        while not made and not self._closing:
            await asyncio.sleep(AGAIN_S)
            await self._bus.wait_up()
            made = await self._ensure()
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._store(*self._waiting.popleft())
            if self._dropped:
                log.warning("node_events_dropped count=%d", self._dropped)
                self._dropped = 0

    async def _store(self, event: NodeStateChanged, once: str) -> None:
        for attempt in range(TRIES):
            if self._closing:
                return
            await self._bus.wait_up()
            try:
                await self._bus.publish_stored(subjects.event("node"), event, once=once)
                return
            except LlmlbError as error:
                # The stream may have gone with the bus's store.
                log.log(
                    logging.WARNING if attempt == TRIES - 1 else logging.DEBUG,
                    "event_not_stored node=%s error=%s",
                    event.node_id[:12],
                    error.message,
                )
                await asyncio.sleep(AGAIN_S)
                await self._ensure()

    async def _ensure(self) -> bool:
        """Make the streams that are missing."""
        try:
            await ensure_streams(self._bus.client, replicas=self._bus.settings.bus_replicas)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            mapped = map_nats_error(error)
            log.warning("streams_not_made error=%r detail=%s", mapped.message, mapped.detail)
            return False
        return True
