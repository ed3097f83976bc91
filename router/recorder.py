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
from llmlb.bus.tasks import Background
from llmlb.router.record import Record

log = logging.getLogger("llmlb.router.recorder")

WAITING_MAX = 20_000
WAITING_BYTES_MAX = 64 * 1024 * 1024
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
        self._waiting: deque[tuple[str, bytes]] = deque()
        """Subject and message of each."""
        self._bytes = 0
        self._there = asyncio.Event()
        self._background = Background("recorder")
        self.dropped = 0
        """How many were lost since the stream last took some."""

    @property
    def waiting_bytes(self) -> int:
        """Of the records that the stream does not have yet; at most WAITING_BYTES_MAX."""
        return self._bytes

    def start(self) -> None:
        self._background.start(self._run(), "run")

    def put(self, record: Record) -> None:
        try:
            data = codec.encode_plain(record)
        except LlmlbError as error:
            log.error("request_record_unwritable request=%s detail=%s", record.request_id, error.detail)
            return
        if len(self._waiting) >= WAITING_MAX or self._bytes + len(data) > WAITING_BYTES_MAX:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("request_records_dropped waiting=%d bytes=%d", len(self._waiting), self._bytes)
            return
        self._waiting.append((subjects.request_record(record.node_id or NOWHERE), data))
        self._bytes += len(data)
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
            for subject, data in others:
                await self._bus.publish_bytes(subject, data)
            await self._bus.publish_bytes_stored(*last)
        except LlmlbError as error:
            log.debug("request_records_wait count=%d error=%s", len(self._waiting), error.message)
            return False
        for _, data in batch:
            self._waiting.popleft()
            self._bytes -= len(data)
        self.dropped = 0
        return True

    async def close(self) -> None:
        """Send what waits, if the bus takes it within 2 s. Never raises."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._waiting and self._bus.connected and await self._send():
                    pass
        await self._background.close()
