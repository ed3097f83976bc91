"""The last events of the cluster in memory, as the stream LLMLB_EVENTS has them: one consumer a process.

Every process of every router reads the same stream, so what it hands on has the same ids everywhere, and one that has
just begun knows what was told before. The consumer is made anew, from the next number on, after an outage of the bus,
when a number is missing, and when the stream has more than arrived.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BadMessage
from llmlb.bus.messages.base import Message
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.router.live_log")

KEPT = 10_000
"""Events in memory, which a client that comes back can be given."""
FIRST_READ_S = 3.0
CALL_S = 10.0
AGAIN_S = 1.0
CHECK_S = 5.0
"""How often the stream is asked whether something did not arrive."""
_ERRORS = (nats.errors.Error, OSError, TimeoutError)


@dataclass(slots=True)
class Told:
    """One event. ``seq``: its number in the stream. ``text``: as clients are sent it, once one was."""

    seq: int
    event: Message
    text: str = ""


class EventLog:
    """:meth:`start` once the bus is up and its streams are made. Callbacks are called on the loop, and must not wait.

    ``on_event``: each new one. ``on_loaded``: all that was there has been read; again for a stream that was made anew.
    """

    def __init__(self, bus: Bus, *, kept: int = KEPT) -> None:
        self._bus, self._kept = bus, kept
        self._entries: list[Told] = []
        """At most twice ``kept``; cut back to that at once."""
        self.floor = 0
        """Every event with a higher number is in memory."""
        self.last = 0
        """The newest number."""
        self.stream = ""
        """Which stream the numbers are of: another text when it was made anew. Empty: not known yet."""
        self._created, self._lives = "", 0
        self.loaded = False
        self.on_event: list[Callable[[Told], None]] = []
        self.on_loaded: list[Callable[[], None]] = []
        self._subscription: Subscription | None = None
        self._round = 0
        """Of consumers: what an earlier one still brings is dropped."""
        self._expected = 1
        self._behind: int | None = None
        """The number that was missing at the last check."""
        self._poke, self._read = asyncio.Event(), asyncio.Event()
        self._background = Background("events")

    async def start(self) -> None:
        """Read what is there within 3 s, or behind it; then follow."""
        self._bus.on_up(self._back_again)
        self._poke.set()
        self._background.forever(self._run, "follow")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_S):
                await self._read.wait()

    async def known(self) -> None:
        """Return when all that was there has been read."""
        await self._read.wait()

    async def close(self) -> None:
        await self._background.close()

    def after(self, seq: int, most: int) -> list[Told]:
        """The events that follow ``seq``, in order."""
        at = bisect.bisect_right(self._entries, seq, key=lambda told: told.seq)
        return self._entries[at : at + most]

    def count_after(self, seq: int) -> int:
        """How many events follow ``seq``."""
        return len(self._entries) - bisect.bisect_right(self._entries, seq, key=lambda told: told.seq)

    def entries(self) -> list[Told]:
        """All that are in memory."""
        return self._entries

    # Following

    async def _back_again(self) -> None:
        self._poke.set()

    async def _run(self) -> None:
        said = ""
        while True:
            pause = CHECK_S
            try:
                await self._bus.wait_up()
                async with asyncio.timeout(CALL_S):
                    if self._poke.is_set() or await self._missed():
                        self._poke.clear()
                        await self._follow()
                said = ""
            except _ERRORS as error:
                text = map_nats_error(error).message
                if text != said and not isinstance(error, nats.js.errors.NotFoundError):
                    log.info("events_not_read error=%r", text)
                said, pause = text, AGAIN_S
                await asyncio.sleep(pause)
                self._poke.set()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._poke.wait()

    async def _missed(self) -> bool:
        """Whether the stream is another one, or has had something for a while that did not arrive."""
        info = await self._bus.client.jetstream().stream_info(subjects.STREAM_EVENTS)
        if str(info.created) != self._created:
            return True
        behind, self._behind = self._behind, self.last if info.state.last_seq > self.last else None
        return behind is not None and behind == self._behind

    async def _follow(self) -> None:
        """A new consumer, from the next number on. Raises nats.errors.Error."""
        self._round += 1
        await self._leave()
        js = self._bus.client.jetstream()
        info = await js.stream_info(subjects.STREAM_EVENTS)
        self._adopt(str(info.created), info.state.last_seq)
        begin = max(self.last + 1, info.state.last_seq - self._kept + 1, info.state.first_seq)
        if begin > self.last + 1:
            # What is between is gone, or not read any more: whoever has not got it has to begin anew.
            self._entries.clear()
            self.floor = self.last = begin - 1
        number, self._expected = self._round, 1

        async def take(msg: Msg) -> None:
            if number == self._round:
                self._take(msg)

        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=begin, ack_policy=AckPolicy.NONE
        )
        self._subscription = await js.subscribe(
            subjects.all_events(), stream=subjects.STREAM_EVENTS, cb=take, config=config, manual_ack=True
        )
        found = await self._subscription.consumer_info()
        # Delivered already, or nothing there: then no message will say that it is the last.
        if found.num_pending == 0 and (found.delivered is None or found.delivered.consumer_seq == 0):
            self.last = max(self.last, info.state.last_seq)
            self._is_loaded()

    async def _leave(self) -> None:
        """The server forgets a consumer that nobody listens to."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    def _adopt(self, created: str, last: int) -> None:
        """What is known of another stream, or of one that lost its end, says nothing about this one."""
        if self.stream and (created != self._created or last < self.last):
            log.warning("event_stream_is_another_one last=%d known=%d", last, self.last)
            self._entries.clear()
            self.floor = self.last = 0
            self.loaded = False
            self._lives += 1
        self._created = created
        self.stream = f"{created}.{self._lives}" if self._lives else created

    def _take(self, msg: Msg) -> None:
        meta: Any = msg.metadata
        if meta.sequence.consumer != self._expected:
            log.warning("event_missing expected=%d got=%d", self._expected, meta.sequence.consumer)
            self._round += 1
            self._poke.set()
            return
        self._expected += 1
        if meta.sequence.stream > self.last:
            self.last = meta.sequence.stream
            self._keep(self.last, msg)
        if meta.num_pending == 0:
            self._is_loaded()

    def _keep(self, seq: int, msg: Msg) -> None:
        try:
            event = codec.decode(msg.data)
        except BadMessage as error:
            log.warning("event_unreadable seq=%d error=%s", seq, error.message)
            return
        if event is None:
            return  # a newer version's
        told = Told(seq, event)
        self._entries.append(told)
        if len(self._entries) >= 2 * self._kept:
            self._entries = self._entries[-self._kept :]
            self.floor = self._entries[0].seq - 1
        for callback in self.on_event:
            callback(told)

    def _is_loaded(self) -> None:
        if not self.loaded:
            self.loaded = True
            self._read.set()
            for callback in self.on_loaded:
                callback()
