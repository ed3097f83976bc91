"""One content of one file, fetched by several threads in ranges and hashed as it grows.

Threads, not coroutines: at 300 MB/s a download takes a whole core, and the node's loop carries the answers of the
models. Segments are taken from the front, so that the digest follows close behind; what a thread can't finish it gives
back and tries again. Nothing here gives up by itself: passing trouble is waited for, a lasting cause is raised.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from llmlb.bus.errors import Forbidden, LlmlbError, PullFailed
from llmlb.node.pull.digest import Digest
from llmlb.node.pull.hub import Location, public
from llmlb.node.pull.partial import BLOCK, Partial
from llmlb.node.pull.trouble import FIRST_S, MOST_S, Backoff, Passing, passes, retry_after_s
from llmlb.node.pull.wire import Wire

log = logging.getLogger("llmlb.node.pull.fetch")

SYNC_BYTES = 4 * 1024 * 1024
SYNC_S = 1.0
HASH_BYTES = 4 * 1024 * 1024
HASH_FROM_BYTES = 1024 * 1024
MAX_REFUSALS = 5
_SMALLEST_SEGMENT, _LARGEST_SEGMENT = 4 * 1024 * 1024, 64 * 1024 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one download. ``stall_s``: silence after which a connection is given up; there is no overall limit.

    ``segment_bytes`` None: by the file's size. Times in seconds.
    """

    connections: int = 4
    segment_bytes: int | None = None
    stall_s: float = 30.0
    connect_s: float = 10.0
    backoff_first_s: float = FIRST_S
    backoff_most_s: float = MOST_S

    def segment_for(self, size: int) -> int:
        if self.segment_bytes is not None:
            return self.segment_bytes
        each = size // (self.connections * 4) // BLOCK * BLOCK
        return min(max(each, _SMALLEST_SEGMENT), _LARGEST_SEGMENT)


class Changed(Exception):
    """The hub has other content now, to be found at ``location``."""

    def __init__(self, location: Location) -> None:
        super().__init__(location.etag)
        self.location = location


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


class Link:
    """Where the bytes are, renewed when a signed address has expired. Thread-safe."""

    def __init__(self, location: Location, locate: Callable[[], Location]) -> None:
        self._location, self._locate = location, locate
        self._lock = threading.Lock()
        self._generation = 0
        self._etag: str | None = None

    def current(self) -> tuple[Location, int]:
        with self._lock:
            return self._location, self._generation

    def renew(self, generation: int) -> None:
        """Ask the hub again, unless another thread did. Raises Changed, Passing or a lasting LlmlbError."""
        with self._lock:
            if generation != self._generation:
                return
            fresh = self._locate()
            if (fresh.etag, fresh.size) != (self._location.etag, self._location.size):
                raise Changed(fresh)
            self._location, self._etag = fresh, None
            self._generation += 1

    def check(self, etag: str | None, generation: int) -> None:
        """Ask the hub again when the place of the bytes has another ETag than before. Raises as `renew` does."""
        with self._lock:
            same = etag is None or generation != self._generation or self._etag in (None, etag)
            if same and generation == self._generation and etag is not None:
                self._etag = etag
        if not same:
            self.renew(generation)


class Fetch:
    """All missing ranges of one content. `run` blocks; `stop` may be called by any thread, and is for good."""

    def __init__(self, partial: Partial, link: Link, digest: Digest, limits: Limits, count: Count) -> None:
        self._partial, self._link, self._digest, self._limits, self._count = partial, link, digest, limits, count
        self._backoff = Backoff(limits.backoff_first_s, limits.backoff_most_s)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._refusals = 0
        self._whole: threading.Thread | None = None
        self._ranges = threading.Event()
        step = limits.segment_for(partial.size)
        self._waiting = [
            Segment(min(at + step, end), at, at) for start, end in partial.missing() for at in range(start, end, step)
        ]
        self._wire = Wire(connections=limits.connections, stall_s=limits.stall_s, connect_s=limits.connect_s)
        self.trouble: str | None = None
        """What the download waits for now, for people; None while bytes flow."""

    def stop(self) -> None:
        self._fail(Stopped())

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
        self._over.set()
        self._wire.cut()

    def run(self) -> None:
        """Fetch and hash everything. Raises Changed, Stopped or a lasting LlmlbError; what came is kept and synced."""
        count = min(self._limits.connections, len(self._waiting))
        workers = [self._thread(self._work, "llmlb-pull-0")] if count else []
        workers += [self._thread(self._work_later, f"llmlb-pull-{number}") for number in range(1, count)]
        syncer = self._thread(self._sync_often, "llmlb-pull-sync")
        try:
            while any(worker.is_alive() for worker in workers):
                if not self._hash_some(HASH_FROM_BYTES):
                    self._over.wait(0.01)
        finally:
            self._over.set()
            self._wire.cut()
            for thread in (*workers, syncer):
                thread.join()
            self._wire.close()
            with contextlib.suppress(LlmlbError):
                self._partial.sync()
        while self._error is None and self._hash_some():
            pass
        if self._error is not None:
            raise self._error

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
        last = time.monotonic()
        while not self._over.wait(0.05):
            if self._partial.unsynced_bytes() >= SYNC_BYTES or time.monotonic() - last >= SYNC_S:
                self._partial.sync()
                last = time.monotonic()

    def _hash_some(self, least: int = 1) -> bool:
        """Hash what follows what was hashed. False when less than ``least`` is there. Raises PullFailed."""
        if not self._digest.needed:
            self._count.hashed = self._partial.prefix_bytes()
            return False
        ready = self._partial.prefix_bytes() - self._count.hashed
        if ready < least:
            return False
        data = self._partial.read(self._count.hashed, min(ready, HASH_BYTES))
        if not data:
            raise PullFailed(f"{self._partial.path.name} has become shorter than it was")
        self._digest.update(data)
        self._count.hashed += len(data)
        return True

    # Workers

    def _work_later(self) -> None:
        """The first worker finds out whether there are ranges; without them the others have nothing to do."""
        while not self._ranges.wait(0.05):
            if self._over.is_set():
                return
        self._work()

    def _work(self) -> None:
        while not self._over.is_set():
            if (wait_s := self._backoff.wait_s()) > 0:
                self._over.wait(wait_s)
                continue
            if (mine := self._take()) is None:
                self._ranges.set()
                return
            started = time.monotonic()
            try:
                if not self._attempt(mine):
                    return
            except Passing as trouble:
                wait_s = self._backoff.failed(started, trouble.retry_after_s)
                self._say(f"{trouble.reason}; next try in {wait_s:.0f} s")
            finally:
                self._give_back(mine)

    def _say(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:
            log.warning("pull_waits file=%s reason=%s", self._partial.target.name, trouble)
        self.trouble = trouble

    def _take(self) -> list[Segment] | None:
        with self._lock:
            return [self._waiting.pop(0)] if self._waiting else None

    def _give_back(self, mine: list[Segment]) -> None:
        with self._lock:
            self._waiting = sorted(
                [*self._waiting, *(segment for segment in mine if not segment.done)], key=lambda each: each.position
            )
            if self._whole is threading.current_thread():
                self._whole = None

    def _attempt(self, mine: list[Segment]) -> bool:
        """One request. True: its segments are done, or another try may help; False: the rest is another worker's.

        Raises Passing or a lasting cause.
        """
        location, generation = self._link.current()
        asked = f"bytes={mine[0].position}-{mine[0].end - 1}"
        headers = {**location.headers, "Accept-Encoding": "identity", "Range": asked}
        try:
            with self._wire.client.stream("GET", location.url, headers=headers, follow_redirects=True) as response:
                start = self._accept(response, mine, generation)
                if start is not None:
                    self._receive(response, mine, start)
                return start is not None or response.status_code != 200
        except httpx.UnsupportedProtocol as error:
            where = f"an address that is not http for {self._partial.target.name}"
            raise PullFailed(f"the hub sends to {where}: nothing is read there") from error
        except (httpx.TransportError, httpx.DecodingError, httpx.TooManyRedirects, httpx.InvalidURL) as error:
            if self._over.is_set():
                raise Stopped from error
            raise Passing(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        if isinstance(error, httpx.ReadTimeout):
            return f"no byte came for {self._limits.stall_s:.0f} s"
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            return f"the server can't be reached ({public(str(error))})"
        return f"the connection was cut ({public(str(error)) or type(error).__name__})"

    def _accept(self, response: httpx.Response, mine: list[Segment], generation: int) -> int | None:
        """Where in the file the answer's body begins, None when it is not for us. Raises Passing or a lasting cause."""
        status = response.status_code
        if status in (401, 403, 404, 410):
            self._refused(status, generation)
            return None
        if status not in (200, 206):
            if passes(status):
                raise Passing(f"the server answers {status}", retry_after_s(response.headers))
            if status == 416:
                self._link.renew(generation)
                raise Passing("the server has no such range")
            raise PullFailed(f"the server answers {status} for {self._partial.target.name}")
        self._link.check(response.headers.get("etag"), generation)
        if status == 206:
            return self._accept_range(response, mine[0], generation)
        length = response.headers.get("content-length")
        if "content-encoding" not in response.headers and length not in (None, str(self._partial.size)):
            self._link.renew(generation)
            raise Passing(f"the server sends {length} bytes instead of {self._partial.size}")
        return 0 if self._take_all(mine) else None

    def _accept_range(self, response: httpx.Response, segment: Segment, generation: int) -> int:
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is not None and match[3] not in ("*", str(self._partial.size)):
            self._link.renew(generation)
            raise Passing(f"the server has {match[3]} bytes instead of {self._partial.size}")
        if match is None or int(match[1]) != segment.position or "content-encoding" in response.headers:
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

    def _receive(self, response: httpx.Response, mine: list[Segment], position: int) -> None:
        for chunk in response.iter_bytes():
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

    def _store(self, mine: list[Segment], position: int, chunk: bytes) -> None:
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
                segment.marked = marked
                self._moved()

    def _moved(self) -> None:
        self._backoff.progressed()
        self._refusals = 0
        if self.trouble is not None:
            self._say(None)
