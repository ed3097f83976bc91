"""The projection of the request records into ``LLMLB_HOME/router.db``, and the questions to it.

Each router reads the stream for itself, from the place its own database remembers. All work on the database happens in
threads of this module: one writes, two read. Whatever is wrong with it (locked, full, damaged, deleted), requests are
served; it is said once, tried again, and what was missed is read from the stream, which keeps 7 days. A damaged file is
set aside as ``router.db.damaged``, since everything in it comes from the stream. The number of requests in the last
hour is counted in memory, so that it costs nothing to ask and is right without a database too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import LlmlbError
from llmlb.bus.stream_reader import StoredMessage, StreamReader, StreamState
from llmlb.bus.tasks import Background
from llmlb.router.history_query import RequestFilter
from llmlb.router.history_questions import Questions
from llmlb.router.hour import HourCount
from llmlb.router.store import BUSY_TIMEOUT_S, Position, RequestStore, damaged, set_aside

log = logging.getLogger("llmlb.router.history")

BATCH_ROWS = 500
BATCH_BYTES = 4 * 1024 * 1024
EVERY_S = 0.5
REST_S = 5.0
"""In the place of EVERY_S while no records come: the bus tells of the next one."""
IDLE_ROUNDS = 4
"""So often in a row there has to be nothing to read before that."""
RETRY_S = 2.0
LOOK_S = 30.0
"""How often it is asked whether the stream is still the same one, and what time it is on the bus."""
PRUNE_S = 60.0
PRUNE_ROWS = 500
PRUNE_STEPS = 40
KEEP_S = 7 * 86400.0
MAX_BYTES = 4 * 1024 * 1024 * 1024
"""Of the database; beyond it the oldest requests lose their bodies."""
CLOSE_S = 5.0

T = TypeVar("T")


class RequestCount(Protocol):
    """How many requests the last hour had."""

    @property
    def last_hour(self) -> int: ...


class History:
    """The request history of one router. :meth:`start` once the bus was opened; questions may come before."""

    def __init__(self, bus: Bus, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.written = 0
        """Rows this process wrote."""
        self.skipped = 0
        """Messages of the stream that are no records."""
        self._bus = bus
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._reader = StreamReader(bus, subjects.STREAM_REQUESTS, subjects.all_request_records())
        self._background = Background("history")
        self._writing = ThreadPoolExecutor(1, "history-write")
        self._questions = Questions(path, self.found_damaged)
        self._store: RequestStore | None = None
        self._opened: RequestStore | None = None
        """The last one that was opened, whether or not it was taken over as ``_store``."""
        self._position = Position("", 0)
        self._problem: str | None = None
        self._stream: StreamState | None = None
        self._hour = HourCount()
        self._counted_to: int | None = None
        """Number of the last message that the hour's count has; None before the first."""
        self._due = {"look": 0.0, "open": 0.0, "prune": 0.0}
        """When each is to be done next, seconds of the monotonic clock."""
        self._idle = 0
        """How often in a row there was nothing to read."""
        self._news = asyncio.Event()
        """There may be something to do, though it is not time yet."""
        self.on_step: Callable[[], None] = lambda: None
        """Called when what is said above may have changed."""

    # What it says

    @property
    def up(self) -> bool:
        """True while records reach the database."""
        return self._store is not None and self._problem is None

    @property
    def last_hour(self) -> int:
        """Requests that ended in the last 3600 s, cluster-wide, to 10 s; half a second behind."""
        return self._hour.total()

    async def find(self, wanted: RequestFilter) -> tuple[list[dict[str, Any]], bool]:
        """As :meth:`Questions.find`."""
        return await self._questions.find(wanted)

    async def get(self, request_id: str) -> dict[str, Any] | None:
        """As :meth:`Questions.get`."""
        return await self._questions.get(request_id)

    # The projection

    def start(self) -> None:
        self._bus.on_up(self._back_again)
        self._background.start(self._run(), "project")

    async def _back_again(self) -> None:
        self._news.set()

    async def close(self) -> None:
        """End; what is being written is finished, within CLOSE_S."""
        await self._background.close()
        await self._reader.unwatch()
        self._store = None
        closing = self._writing.submit(lambda: _close(self._opened))
        self._writing.shutdown(wait=False)
        self._questions.close()
        await asyncio.wait([asyncio.wrap_future(closing)], timeout=CLOSE_S)

    async def _run(self) -> None:
        unread = False
        while True:
            try:
                more = self._bus.connected and await self._step()
                unread = False
            except LlmlbError as error:
                level = logging.WARNING if self._bus.connected and not unread else logging.DEBUG
                log.log(level, "request_stream_not_read error=%s detail=%s", error.message, error.detail)
                self._due["look"], more, unread = 0.0, False, self._bus.connected
            except Exception as error:  # noqa: BLE001 - the top of a task, and logged there
                # A history that stopped would never be noticed.
                more = False
                self._failed(error)
            self.on_step()
            if more:
                self._idle = 0
            else:
                await self._rest()

    async def _rest(self) -> None:
        """A while, in which records gather; while none come, until the next one does. Never raises."""
        self._idle = self._idle + 1 if self._bus.connected and self.up else 0
        if self._idle <= IDLE_ROUNDS:
            await asyncio.sleep(EVERY_S)
        elif self._idle == IDLE_ROUNDS + 1:
            self._news.clear()
            try:
                await self._reader.watch(self._news.set)
            except LlmlbError:
                self._idle = 0
            await asyncio.sleep(EVERY_S)  # and then once more is read what may have come in that moment
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REST_S):
                    await self._news.wait()
                self._idle = 0

    async def _step(self) -> bool:
        """One batch. True: there may be more at once. Raises LlmlbError."""
        await self._upkeep()
        if self._store is None and self._counted_to is None:
            assert self._stream is not None
            batch = await self._reader.read_since(self._stream.now - HourCount.SPAN_S, BATCH_ROWS, BATCH_BYTES)
        else:
            after = self._position.sequence if self._store is not None else self._counted_to or 0
            batch = await self._reader.read(after, BATCH_ROWS, BATCH_BYTES)
        if batch:
            self._count(batch)
            if self._store is not None:
                await self._write(batch)
        return bool(batch)

    async def _upkeep(self) -> None:
        if self._is_due("look", LOOK_S):
            await self._look()
        if self._is_due("open", RETRY_S):
            await self._open()
        if self._store is not None and self._is_due("prune", PRUNE_S):
            await self._prune()

    def _is_due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + every_s
        return True

    async def _look(self) -> None:
        """Is it still the same stream? One that was made anew is read from its beginning."""
        stream = await self._reader.state()
        if self._stream is not None and stream.created != self._stream.created:
            self._counted_to = 0
        self._stream = stream
        self._hour.now_is(stream.now)
        self._start_over_if_new(stream)

    def _start_over_if_new(self, stream: StreamState) -> None:
        known = self._position
        if self._store is None or (known.stream == stream.created and known.sequence <= stream.last_sequence):
            return
        if known.stream:
            log.warning("request_stream_is_new created=%s", stream.created)
        self._position = Position(stream.created, 0)

    async def _open(self) -> None:
        """Open the database if it is not, or not the one in place any more."""
        if self._store is not None and not await self._in_writer(lambda store: store.in_place):
            log.warning("history_file_gone path=%s", self._path)
            self._writing.submit(_close, self._store)
            self._store = None
        if self._store is not None or self._stream is None:
            return
        since = self._stream.now - HourCount.SPAN_S
        opening = asyncio.get_running_loop().run_in_executor(self._writing, self._open_store, since)
        try:
            self._store, self._position, hour = await opening
        except (sqlite3.Error, OSError) as error:
            self._store_failed(error)
            return
        self._start_over_if_new(self._stream)
        if self._counted_to is None:
            self._hour.add(hour)
            self._counted_to = self._position.sequence

    def _open_store(self, since: float) -> tuple[RequestStore, Position, list[float]]:
        """In the writer's thread: the store, its position, and what it has since ``since``."""
        try:
            store = RequestStore(self._path, busy_timeout_s=self._busy_timeout_s)
        except sqlite3.Error as error:
            if not damaged(error):
                raise
            _set_aside(self._path)
            store = RequestStore(self._path, busy_timeout_s=self._busy_timeout_s)
        self._opened = store
        return store, *store.beginning(since)

    def _store_failed(self, error: sqlite3.Error | OSError) -> None:
        """Say it, once; go on without the database until it can be opened again."""
        problem = f"{type(error).__name__}: {error}"
        if problem != self._problem:
            self._problem = problem
            log.error("history_not_written path=%s error=%r", self._path, problem)
        store, self._store = self._store, None
        if store is not None:
            self._writing.submit(_close, store)
            if isinstance(error, sqlite3.Error) and damaged(error):
                self._writing.submit(_set_aside, self._path)

    def _failed(self, error: Exception) -> None:
        """What nobody foresaw, once with where it comes from; :attr:`up` is False until something is written again."""
        problem = f"{type(error).__name__}: {error}"
        if problem != self._problem:
            self._problem = problem
            log.exception("history_failed")

    def found_damaged(self, error: sqlite3.Error) -> None:
        """Somebody who read the database found it broken: it is set aside, and made anew from the stream."""
        self._store_failed(error)
        self._news.set()

    def _works(self) -> None:
        """Something was written: only that shows that a problem is over."""
        if self._problem is not None:
            log.warning("history_works_again path=%s", self._path)
            self._problem = None

    async def _in_writer(self, work: Callable[[RequestStore], T]) -> T:
        store = self._store
        assert store is not None
        return await asyncio.get_running_loop().run_in_executor(self._writing, work, store)

    def _count(self, batch: list[StoredMessage]) -> None:
        new = [message for message in batch if message.sequence > (self._counted_to or 0)]
        if new:
            self._hour.add(message.stored_at for message in new)
            self._counted_to = new[-1].sequence

    async def _write(self, batch: list[StoredMessage]) -> None:
        position = Position(self._position.stream, batch[-1].sequence)
        try:
            done = await self._in_writer(lambda store: store.write(batch, position))
        except sqlite3.Error as error:
            self._store_failed(error)
            return
        self._works()
        self._position = position
        self.written += done.rows
        if done.skipped and not self.skipped:
            log.warning("request_record_unreadable count=%d error=%s", done.skipped, done.problem)
        self.skipped += done.skipped

    async def _prune(self) -> None:
        """Forget what is older than KEEP_S by the bus's clock, and bodies beyond MAX_BYTES, in small steps."""
        before = self._hour.now() - KEEP_S
        try:
            for _ in range(PRUNE_STEPS):
                deleted = await self._in_writer(lambda store: store.prune(before, PRUNE_ROWS))
                if deleted < PRUNE_ROWS:
                    break
            for _ in range(PRUNE_STEPS):
                if await self._in_writer(lambda store: store.used_bytes()) < MAX_BYTES:
                    break
                if not await self._in_writer(lambda store: store.drop_details(PRUNE_ROWS)):
                    break
            self._works()
        except sqlite3.Error as error:
            self._store_failed(error)


# In the writer's thread


def _close(store: RequestStore | None) -> None:
    if store is not None:
        store.close()


def _set_aside(path: Path) -> None:
    try:
        log.error("history_damaged path=%s kept_as=%s", path, set_aside(path))
    except OSError as error:
        log.error("history_not_set_aside path=%s error=%r", path, error)
