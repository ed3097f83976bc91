"""One content of one file, fetched by several threads in ranges and hashed as it grows.

Threads, not coroutines: at 300 MB/s a download takes a whole core, and the node's loop carries the answers of the
models. Segments are taken from the front, so that the digest follows close behind; what a thread can't finish it gives
back and tries again. Nothing here gives up by itself: passing trouble is waited for, a lasting cause is raised.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmlb.bus.errors import Forbidden, LlmlbError, PullFailed
from llmlb.node.pull.digest import STEP_BYTES, Digest, Follower
from llmlb.node.pull.hub import public
from llmlb.node.pull.link import Changed, Link
from llmlb.node.pull.pace import Pace
from llmlb.node.pull.partial import BLOCK, Partial
from llmlb.node.pull.trouble import FIRST_S, MOST_S, Backoff, Passing, passes, retry_after_s
from llmlb.node.pull.wire import TROUBLE, Answer, NotHttp, Unreachable, Wire, connections

log = logging.getLogger("llmlb.node.pull.fetch")

SYNC_BYTES = 4 * 1024 * 1024
SYNC_S = 1.0
LOOK_S = 0.05
"""Who hashes and who syncs look at least so often, and when bytes came."""
AHEAD_BYTES = 16 * 1024 * 1024
"""For each so many bytes that came and could be hashed, one connection less asks for more: where both share the cores,
the digest otherwise starves, and the last fifth of a fast download is waiting for it."""
PAUSE_S = 0.005
MAX_REFUSALS = 5
_SMALLEST_SEGMENT, _LARGEST_SEGMENT = 4 * 1024 * 1024, 64 * 1024 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one download. ``stall_s``: silence after which a connection is given up; there is no overall limit.

    ``segment_bytes`` None: by the file's size. Times in seconds.
    """

    connections: int = field(default_factory=connections)
    segment_bytes: int | None = None
    stall_s: float = 30.0
    connect_s: float = 10.0
    backoff_first_s: float = FIRST_S
    backoff_most_s: float = MOST_S

    def segments(self, missing: list[tuple[int, int]]) -> list[Segment]:
        """Cut what is missing. Smaller towards the end, so that all connections end together, and the digest with
        them."""
        found: list[Segment] = []
        left = sum(end - start for start, end in missing)
        for start, end in missing:
            while start < end:
                each = left // (self.connections * 4) // BLOCK * BLOCK
                step = self.segment_bytes or min(max(each, _SMALLEST_SEGMENT), _LARGEST_SEGMENT)
                stop = min(start + step, end)
                found.append(Segment(stop, start, start))
                left, start = left - (stop - start), stop
        return found


class Stopped(Exception):
    """Someone called `Fetch.stop`."""


@dataclass(slots=True)
class Count:
    """What a download has done so far. ``fetched``: bytes that came over the network, those for nothing included."""

    total: int = 0
    done: int = 0
    hashed: int = 0
    fetched: int = 0


@dataclass(slots=True)
class Segment:
    """Bytes from ``start`` to ``end``: written up to ``position``, marked in the map up to ``marked``."""

    end: int
    position: int
    marked: int

    @property
    def done(self) -> bool:
        return self.position >= self.end


class Fetch:
    """All missing ranges of one content. `run` blocks; `stop` may be called by any thread, and is for good."""

    def __init__(self, partial: Partial, link: Link, digest: Digest, limits: Limits, count: Count) -> None:
        self._partial, self._link, self._limits, self._count = partial, link, limits, count
        self._follower = Follower(partial, digest)
        self._fetched_before = count.fetched
        self._backoff = Backoff(limits.backoff_first_s, limits.backoff_most_s)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._refusals = self._working = 0
        self._whole: threading.Thread | None = None
        self._ranges = threading.Event()
        self._news = threading.Event()
        """Bytes came, or a worker has ended."""
        self._written = threading.Event()
        """Nothing more is written."""
        self._waiting = limits.segments(partial.missing())
        self._pace = Pace(limits.connections)
        self._called = threading.Event()
        """There is nothing left to take, or it is over: nobody waits to be wanted any more."""
        self._wire = Wire(stall_s=limits.stall_s, connect_s=limits.connect_s)
        self.trouble: str | None = None
        """What the download waits for now, for people; None while bytes flow."""

    def stop(self) -> None:
        self._fail(Stopped())

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
        self._over.set()
        self._called.set()
        self._wire.cut()

    def run(self) -> None:
        """Fetch and hash everything. Raises Changed, Stopped or a lasting LlmlbError; what came is kept and synced."""
        self._working = min(self._limits.connections, len(self._waiting))
        workers = [
            self._thread(functools.partial(self._worker, number), f"llmlb-pull-{number}")
            for number in range(self._working)
        ]
        syncer = self._thread(self._sync_often, "llmlb-pull-sync")
        try:
            self._follow_until_written(workers)
            while self._error is None and self._follow():
                pass
        finally:
            syncer.join()
        if self._error is not None:
            raise self._error

    def _follow_until_written(self, workers: list[threading.Thread]) -> None:
        try:
            while self._working:
                self._news.clear()
                if self._working and not self._follow(STEP_BYTES):
                    self._news.wait(LOOK_S)
        finally:
            self._over.set()
            self._called.set()
            self._wire.cut()
            for worker in workers:
                worker.join()
            self._written.set()
            self._wire.close()

    def _thread(self, work: Callable[[], None], name: str) -> threading.Thread:
        def top() -> None:
            try:
                work()
            except (LlmlbError, Changed, Stopped) as error:
                self._fail(error)
            except Exception as error:  # the top of a thread: it must not die unseen
                log.exception("pull_thread_failed thread=%s", name)
                self._fail(PullFailed("the download failed for an unknown cause", detail=repr(error)))

        thread = threading.Thread(target=top, name=name, daemon=True)
        thread.start()
        return thread

    def _sync_often(self) -> None:
        """Until all is written, and then what is left of it, while the rest is hashed."""
        last = time.monotonic()
        while not self._written.wait(LOOK_S):
            if self._partial.unsynced_bytes() >= SYNC_BYTES or time.monotonic() - last >= SYNC_S:
                self._partial.sync()
                last = time.monotonic()
        self._partial.sync()

    def _follow(self, least: int = 1) -> bool:
        """Hash some of what is there. False when less than ``least`` bytes are. Raises PullFailed."""
        more = self._follower.follow(least)
        self._count.hashed = self._follower.at
        return more

    # Workers

    def _worker(self, number: int) -> None:
        """The first one finds out whether there are ranges; without them the others have nothing to do."""
        try:
            while number and not self._ranges.wait(LOOK_S):
                if self._over.is_set():
                    return
            self._work(number)
        finally:
            with self._lock:
                self._working -= 1
            self._news.set()

    def _is_ahead(self, number: int) -> bool:
        """True when this connection has to wait until more is hashed. Only what came now counts: after a restart there
        may be much to hash, and no reason to wait for it. The first connection never waits."""
        came = self._count.fetched - self._fetched_before - self._follower.at
        return number > 0 and number >= self._limits.connections - min(came, self._follower.behind) // AHEAD_BYTES

    def _work(self, number: int) -> None:
        while not self._over.is_set():
            if (wait_s := self._backoff.wait_s()) > 0:
                self._over.wait(wait_s)
                continue
            if self._is_ahead(number):
                self._over.wait(PAUSE_S)
                continue
            if number >= self._pace.wanted() and not self._called.wait(LOOK_S):
                continue
            if (mine := self._take()) is None:
                self._ranges.set()
                return
            started = time.monotonic()
            try:
                self._pace.begins(number)
                if not self._attempt(number, mine):
                    return
            except Passing as trouble:
                wait_s = self._backoff.failed(started, trouble.retry_after_s)
                self._say(f"{trouble.reason}; next try in {wait_s:.0f} s")
            finally:
                self._pace.ends(number)
                self._give_back(mine)

    def _say(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:
            log.warning("pull_waits file=%s reason=%s", self._partial.target.name, trouble)
        self.trouble = trouble

    def _take(self) -> list[Segment] | None:
        with self._lock:
            mine = [self._waiting.pop(0)] if self._waiting else None
            if not self._waiting:
                self._called.set()
        return mine

    def _give_back(self, mine: list[Segment]) -> None:
        with self._lock:
            self._waiting = sorted(
                [*self._waiting, *(segment for segment in mine if not segment.done)], key=lambda each: each.position
            )
            if self._whole is threading.current_thread():
                self._whole = None

    def _attempt(self, number: int, mine: list[Segment]) -> bool:
        """One request. True: its segments are done, or another try may help; False: the rest is another worker's.

        Raises Passing or a lasting cause.
        """
        location, generation = self._link.current()
        asked = f"bytes={mine[0].position}-{mine[0].end - 1}"
        headers = {**location.headers, "Accept-Encoding": "identity", "Range": asked}
        try:
            with self._wire.get(location.url, headers) as answer:
                start = self._accept(answer, mine, generation)
                self._pace.goes_on(number)
                if start is not None:
                    answer.waits = functools.partial(self._pace.waits, number)
                    answer.goes_on = functools.partial(self._pace.goes_on, number)
                    self._receive(answer, mine, start)
                return start is not None or answer.status != 200
        except NotHttp as error:
            where = f"an address that is not http for {self._partial.target.name}"
            raise PullFailed(f"the hub sends to {where}: nothing is read there") from error
        except (Unreachable, *TROUBLE) as error:
            if self._over.is_set():
                raise Stopped from error
            raise Passing(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no byte came for {self._limits.stall_s:.0f} s"
        if isinstance(error, Unreachable):
            return f"the server can't be reached ({public(str(error))})"
        return f"the connection was cut ({public(str(error)) or type(error).__name__})"

    def _accept(self, answer: Answer, mine: list[Segment], generation: int) -> int | None:
        """Where in the file the answer's body begins, None when it is not for us. Raises Passing or a lasting cause."""
        status = answer.status
        if status in (401, 403, 404, 410):
            self._refused(status, generation)
            return None
        if status not in (200, 206):
            if passes(status):
                raise Passing(f"the server answers {status}", retry_after_s(answer.headers))
            if status == 416:
                self._link.renew(generation)
                raise Passing("the server has no such range")
            raise PullFailed(f"the server answers {status} for {self._partial.target.name}")
        self._link.check(answer.headers.get("etag"), generation)
        if status == 206:
            return self._accept_range(answer, mine[0], generation)
        length = answer.headers.get("content-length")
        if "content-encoding" not in answer.headers and length not in (None, str(self._partial.size)):
            self._link.renew(generation)
            raise Passing(f"the server sends {length} bytes instead of {self._partial.size}")
        return 0 if self._take_all(mine) else None

    def _accept_range(self, answer: Answer, segment: Segment, generation: int) -> int:
        match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is not None and match[3] not in ("*", str(self._partial.size)):
            self._link.renew(generation)
            raise Passing(f"the server has {match[3]} bytes instead of {self._partial.size}")
        if match is None or int(match[1]) != segment.position or "content-encoding" in answer.headers:
            raise Passing("the server sends another range than was asked for")
        self._ranges.set()
        return segment.position

    def _refused(self, status: int, generation: int) -> None:
        """The signed address is over, as a rule: ask the hub for another one, which also tells lasting causes."""
        self._link.renew(generation)
        with self._lock:
            self._refusals += 1
            refusals = self._refusals
        if refusals > MAX_REFUSALS * self._limits.connections:
            raise Forbidden(f"the hub's storage refuses {self._partial.target.name} ({status})")
        if refusals > self._limits.connections:
            raise Passing(f"the hub's storage answers {status}")

    def _take_all(self, mine: list[Segment]) -> bool:
        """The server ignores Range: one worker takes everything in one go. False for all others, whose part it is."""
        me = threading.current_thread()
        with self._lock:
            if self._whole not in (None, me):
                return False
            self._whole = me
            mine.extend(self._waiting)
            self._waiting = []
        mine.sort(key=lambda segment: segment.position)
        return True

    def _receive(self, answer: Answer, mine: list[Segment], position: int) -> None:
        for chunk in answer.pieces():
            if self._over.is_set():
                raise Stopped
            with self._lock:
                self._count.fetched += len(chunk)
            self._store(mine, position, chunk)
            position += len(chunk)
            if all(segment.done for segment in mine):
                return
        if not all(segment.done for segment in mine):
            raise Passing("the server ended its answer early")

    def _store(self, mine: list[Segment], position: int, chunk: memoryview | bytes) -> None:
        """Write the part of a chunk that is missing, and mark whole blocks."""
        end = position + len(chunk)
        for segment in mine:
            if segment.done or segment.position >= end or segment.end <= position:
                continue
            stop = min(segment.end, end)
            self._partial.write(memoryview(chunk)[segment.position - position : stop - position], segment.position)
            with self._lock:
                self._count.done += stop - segment.position
            segment.position = stop
            marked = self._partial.mark(segment.marked, stop)
            if marked != segment.marked:
                if marked // STEP_BYTES != segment.marked // STEP_BYTES or segment.done:
                    self._news.set()
                segment.marked = marked
                self._moved()

    def _moved(self) -> None:
        self._backoff.progressed()
        self._refusals = 0
        if self.trouble is not None:
            self._say(None)
