"""Request records on their way to the stream: off the path of the answers, and none lost while the bus is away.

Records go out in batches, over one connection and in order; only the last of a batch is waited for. When the stream
has that one it has those before it, so a record costs a publish and not a round trip. A batch that is not confirmed
goes out again; a record that arrives twice has the same request id and is counted once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import deque

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import LlmlbError
from llmlb.bus.tasks import Background
from llmlb.router.record import Record, encode

log = logging.getLogger("llmlb.router.recorder")

WAITING_MAX = 20_000
WAITING_BYTES_MAX = 64 * 1024 * 1024
"""Records that wait while the bus is away. Beyond it new ones are dropped, as the oldest may be on their way."""
BATCH = 200
EVERY_S = 0.2
SOON_BYTES = 8 * 1024 * 1024
"""With so much waiting it goes out at once. Kept for EVERY_S, long bodies made the heap grow and shrink. With 4 MiB a
request of 64 KB took some 5 % more, for the confirmation of each batch: one series, which scatters as much."""
RETRY_S = 1.0
NOWHERE = "0" * 32
"""Stands for the node of a request that reached none."""


_subject = functools.lru_cache(1024)(subjects.request_record)


class Recorder:
    """Give it records with :meth:`put`; it never waits and never raises."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: deque[tuple[str, codec.Pieces]] = deque()
        """Subject and message of each."""
        self._bytes = 0
        self._there = asyncio.Event()
        self._much = asyncio.Event()
        """A batch waits, or SOON_BYTES."""
        self._background = Background("recorder")
        self.dropped = 0
        """How many were lost since the stream last took some."""

    @property
    def waiting_bytes(self) -> int:
        """Of the records that the stream does not have yet; at most WAITING_BYTES_MAX."""
        return self._bytes

    def start(self) -> None:
        self._background.forever(self._run, "run")

    def put(self, record: Record) -> None:
        try:
            pieces = encode(record)
        except LlmlbError as error:
            log.error("request_record_unwritable request=%s detail=%s", record.request_id, error.detail)
            return
        size = sum(map(len, pieces))
        if len(self._waiting) >= WAITING_MAX or self._bytes + size > WAITING_BYTES_MAX:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("request_records_dropped waiting=%d bytes=%d", len(self._waiting), self._bytes)
            return
        self._waiting.append((_subject(record.node_id or NOWHERE), pieces))
        self._bytes += size
        if not self._there.is_set():
            self._there.set()
        if self._is_much():
            self._much.set()

    def _is_much(self) -> bool:
        return self._bytes >= SOON_BYTES or len(self._waiting) >= BATCH

    async def _run(self) -> None:
        while True:
            await self._there.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._much.wait()
            if not await self._send():
                await asyncio.sleep(RETRY_S)
            # What came meanwhile waits for more: a batch costs what some records cost.
            if not self._is_much():
                self._much.clear()
            if not self._waiting:
                self._there.clear()

    async def _send(self) -> bool:
        """One batch. False: not confirmed; it stays."""
        batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
        try:
            *others, last = batch
            for subject, pieces in others:
                if not self._bus.publish_now(subject, *pieces):
                    await self._bus.publish_bytes(subject, b"".join(pieces))
            await self._bus.publish_bytes_stored(last[0], b"".join(last[1]))
        except LlmlbError as error:
            log.debug("request_records_wait count=%d error=%s", len(self._waiting), error.message)
            return False
        for _, pieces in batch:
            self._waiting.popleft()
            self._bytes -= sum(map(len, pieces))
        self.dropped = 0
        return True

    async def close(self) -> None:
        """Send what waits, if the bus takes it within 2 s. Never raises."""
        await self._background.close()  # first: a batch that it was sending goes again, and is counted once
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._waiting and self._bus.connected and await self._send():
                    pass
