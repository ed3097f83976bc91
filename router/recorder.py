"""Request records on their way to the stream: off the path of the answers, and none lost while the bus is away.

Records go out in batches, over one connection and in order; only the last of a batch is waited for. When the stream
has that one it has those before it, so a record costs a publish and not a round trip. A batch that is not confirmed
goes out again; a record that arrives twice has the same request id and is counted once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.requests import RequestRecord
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.router.recorder")

WAITING_MAX = 20_000
"""Records that wait while the bus is away. Beyond it new ones are dropped, as the oldest may be on their way."""
BATCH = 200
EVERY_S = 0.2
RETRY_S = 1.0
NOWHERE = "0" * 32
"""Stands for the node of a request that reached none."""


class Recorder:
    """Give it records with :meth:`put`; it never waits and never raises."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: deque[RequestRecord] = deque()
        self._there = asyncio.Event()
        self._background = Background("recorder")
        self._dropped = 0

    def start(self) -> None:
        self._background.start(self._run(), "run")

    def put(self, record: RequestRecord) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._dropped += 1
            if self._dropped == 1:
                log.warning("request_records_dropped limit=%d", WAITING_MAX)
            return
        self._waiting.append(record)
        self._there.set()

    async def _run(self) -> None:
        while True:
            await self._there.wait()
            await asyncio.sleep(EVERY_S)
            while self._waiting:
                if not await self._send():
                    await asyncio.sleep(RETRY_S)
            self._there.clear()

    async def _send(self) -> bool:
        """One batch. False: not confirmed; it stays."""
        batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
        try:
            *others, last = batch
            for record in others:
                await self._bus.publish_bytes(_subject(record), codec.encode(record))
            await self._bus.publish_stored(_subject(last), last)
        except LlmlbError as error:
            log.debug("request_records_wait count=%d error=%s", len(self._waiting), error.message)
            return False
        for _ in batch:
            self._waiting.popleft()
        self._dropped = 0
        return True

    async def close(self) -> None:
        """Send what waits, if the bus takes it within 2 s. Never raises."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._waiting and self._bus.connected and await self._send():
                    pass
        await self._background.close()


def _subject(record: RequestRecord) -> str:
    return subjects.request_record(record.node_id or NOWHERE)
