"""Says what happened: to nodes, in the log; and all of it as events in the stream LLMLB_EVENTS.

Every router sees the same and says it. Each event has a text that is the same at all of them: of those, the stream
keeps the first (``Nats-Msg-Id``, two minutes); what was told before is known from the stream (:attr:`Announcer.told`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import nats.errors

from llmlb.bus import subjects
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BadMessage, LlmlbError, MessageTooLarge
from llmlb.bus.messages.base import Message
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
KNOWN_S = 10.0
"""How long events wait until it is known what is in the stream."""


class Announcer:
    """Events are stored one after the other, in order; a bus that is away, or can't store them now, is waited for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: deque[tuple[str, Message, str]] = deque(maxlen=MOST_WAITING)
        """Topic, event, and the text that is the same at every router."""
        self.told: Callable[[Message], bool] = lambda _: False
        """Whether an event is in the stream already, as far as is known: asked right before it is stored."""
        self.since: Callable[[Message], str] = lambda _: ""
        """What was told of the same thing last: part of the text that tells an event from others."""
        self.stored: Callable[[Message], None] = lambda _: None
        """Told of each event that is in the stream now."""
        self.known: Callable[[], Awaitable[object]] | None = None
        """Returns when it is known what is in the stream."""
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
        self._background.forever(functools.partial(self._run, made), "events")

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
            event = NodeStateChanged(
                node_id=step.node_id,
                name=name,
                before=step.before,
                after=step.after,
                reason=step.reason,
                instance=instance,
            )
            # Two routers that say it in the same 10 seconds; where a border is between them, ``told`` knows.
            once = f"{step.node_id}.{instance}.{step.before}.{step.after}.{int(event.sent_at / ALIKE_S)}"
            self.tell("node", event, once)

    def tell(self, topic: str, event: Message, once: str) -> None:
        """Store an event; never waits. ``once``: the same text for the same change at every router."""
        self._dropped += len(self._waiting) == MOST_WAITING
        self._waiting.append((topic, event, once))
        self._wake.set()

    async def _run(self, made: bool) -> None:
        while not made and not self._closing:
            await asyncio.sleep(AGAIN_S)
            await self._bus.wait_up()
            made = await self._ensure()
        if self.known is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KNOWN_S):
                    await self.known()
        if self._waiting:
            self._wake.set()  # this may be begun again, in the middle of them
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._store(*self._waiting.popleft())
            if self._dropped:
                log.warning("events_dropped count=%d", self._dropped)
                self._dropped = 0

    async def _store(self, topic: str, event: Message, once: str) -> None:
        said = False
        while not self._closing:
            await self._bus.wait_up()
            if self.told(event):
                return
            try:
                since = self.since(event)
                await self._bus.publish_stored(subjects.event(topic), event, once=f"{once}.{since}" if since else once)
                self.stored(event)
                return
            except (BadMessage, MessageTooLarge) as error:
                log.warning("event_dropped event=%s error=%s", once, error.message)
                return
            except LlmlbError as error:
                # The stream may have gone with the bus's store.
                level = logging.WARNING if self._bus.connected and not said else logging.DEBUG
                log.log(level, "event_waits event=%s error=%s", once, error.message)
                said = said or self._bus.connected
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
