"""Download one file so that it survives everything: `download`.

A partial file with a map of its blocks (partial), fetched in parallel ranges (fetch), checked by its digest, renamed
into place. What it goes on from: kill -9, a machine that restarts, cut and silent connections, 408/425/429/5xx, expired
addresses, a server without ranges, content that changed on the hub, a digest that is wrong once. It ends for a lasting
cause only, or when cancelled, and keeps what it has; there is no overall time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmlb.bus.errors import PullFailed
from llmlb.bus.hub_names import Wanted
from llmlb.node.pull.digest import STEP_BYTES, Digest
from llmlb.node.pull.fetch import Count, Fetch, Limits, Stopped
from llmlb.node.pull.hub import Hub, Location
from llmlb.node.pull.link import Changed, Link
from llmlb.node.pull.partial import Identity, Partial
from llmlb.node.pull.trouble import Backoff, Passing

log = logging.getLogger("llmlb.node.pull.download")

TICK_S = 0.25
SPEED_OVER_S = 5.0
MAX_RESTARTS = 5
CANCEL_S = 15.0
"""A cancelled download may wait this long for its disk: what came is synced."""
ASKING_S = 0.05
"""How soon who waits for the hub notices that the download was stopped."""

_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

Note = Callable[[str], None]


class Source(Protocol):
    """Where a file is."""

    def locate(self) -> Location:
        """Ask anew. Blocks; called from a thread. Raises Passing or a lasting LlmlbError."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a repo at a commit."""

    hub: Hub
    wanted: Wanted
    commit: str
    path: str

    def locate(self) -> Location:
        return self.hub.locate(self.wanted, self.commit, self.path)


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes on the disk of all bytes, bytes that are checked, bytes a second; ``trouble``: what is waited for."""

    done_bytes: int
    total_bytes: int
    verified_bytes: int
    speed: float
    trouble: str | None = None

    @property
    def eta_s(self) -> float | None:
        return (self.total_bytes - self.done_bytes) / self.speed if self.speed > 0 else None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A whole file. ``oid``: its digest as checked, None when the hub told none; ``fetched_bytes`` over the network."""

    path: Path
    size: int
    oid: str | None
    fetched_bytes: int


async def download(
    source: Source,
    target: Path,
    *,
    oid: str | None = None,
    limits: Limits | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Note | None = None,
) -> Downloaded:
    """Bring a file to ``target``. ``oid``: its sha256, or git's sha1, as the repo's listing told.

    ``on_progress`` is called each 0.25 s and at the end, ``on_note`` when something has to be said (a restart and its
    reason, a wait), both on the loop. On cancel the partial file stays and the lock is free again as soon as what came
    is on the disk, within 15 s. Raises Conflict (another download writes this file), OutOfDisk, PullFailed,
    ModelUnknown or an AccessError.
    """
    notes: deque[str] = deque()
    transfer = Transfer(source, target, oid, limits or Limits(), notes.append)
    over = _started(transfer)
    meter = _Meter(transfer)
    try:
        while not over.is_set():
            await _wait(over, TICK_S)
            while notes and on_note is not None:
                on_note(notes.popleft())
            if on_progress is not None:
                on_progress(meter.read())
    finally:
        if not over.is_set():
            transfer.stop()
            await _wait(over, CANCEL_S)
    return transfer.result()


def _started(transfer: Transfer) -> asyncio.Event:
    """Run a transfer in a thread. The event is set when it is over."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def top() -> None:
        transfer.run()
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(over.set)

    threading.Thread(target=top, name="llmlb-pull", daemon=True).start()
    return over


async def _wait(event: asyncio.Event, most_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(most_s):
            await event.wait()


class _Meter:
    """Progress with the speed of the last 5 s."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._past: deque[tuple[float, int]] = deque()

    def read(self) -> Progress:
        count, now = self._transfer.count, time.monotonic()
        if self._past and count.fetched < self._past[-1][1]:
            self._past.clear()
        self._past.append((now, count.fetched))
        while now - self._past[0][0] > SPEED_OVER_S:
            self._past.popleft()
        span = now - self._past[0][0]
        speed = (count.fetched - self._past[0][1]) / span if span > 0 else 0.0
        return Progress(count.done, count.total, count.hashed, speed, self._transfer.trouble)


class Transfer:
    """The blocking side of one download: `run` in a thread of its own, then `result`."""

    def __init__(self, source: Source, target: Path, oid: str | None, limits: Limits, say: Note) -> None:
        self._source, self._target, self._oid, self._limits, self._say = source, target, oid, limits, say
        self.count = Count()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._fetch: Fetch | None = None
        self._waits: str | None = None
        self._done: Downloaded | None = None
        self._error: BaseException | None = None

    @property
    def trouble(self) -> str | None:
        fetch = self._fetch
        return self._waits if fetch is None else fetch.trouble

    def stop(self) -> None:
        """End it soon, keeping what is there."""
        with self._lock:
            self._stop.set()
            fetch = self._fetch
        if fetch is not None:
            fetch.stop()

    def result(self) -> Downloaded:
        """Raises what ended it."""
        if self._error is not None:
            raise self._error
        assert self._done is not None
        return self._done

    def run(self) -> None:
        partial = Partial(self._target)
        try:
            partial.open()
            self._done = self._run(partial)
        except Exception as error:  # noqa: BLE001 - the top of a thread; `result` raises it
            self._error = error
        finally:
            partial.close()

    def _run(self, partial: Partial) -> Downloaded:
        if self._oid is not None and self._is_there(self._oid):
            partial.drop()
            return self._downloaded(self._oid)
        location = self._locate()
        self._note(partial.resume(location.etag, location.size))
        for _ in range(MAX_RESTARTS):
            expected = self._expected(location)
            digest = Digest(expected, location.size)
            self.count.total, self.count.done, self.count.hashed = location.size, partial.done_bytes(), 0
            try:
                self._fetch_all(partial, location, digest)
            except Changed as change:
                self._note(f"{self._target.name} has changed on the hub: it is fetched from the beginning")
                location = change.location
                partial.restart(Identity(location.etag, location.size))
                continue
            if digest.right:
                partial.finish()
                return self._downloaded(expected)
            self._wrong(partial, digest)
        raise PullFailed(f"{self._target.name} changes on the hub faster than it can be fetched")

    def _fetch_all(self, partial: Partial, location: Location, digest: Digest) -> None:
        with self._lock:
            if self._stop.is_set():
                raise Stopped
            fetch = self._fetch = Fetch(partial, Link(location, self._ask), digest, self._limits, self.count)
        try:
            fetch.run()
        finally:
            self._fetch = None

    def _wrong(self, partial: Partial, digest: Digest) -> None:
        """A digest is not what it should be. Once: from the beginning; twice: raises PullFailed."""
        identity = partial.identity
        assert identity is not None
        text = f"the {digest.kind} of {self._target.name} is wrong"
        if identity.wrong >= 1:
            partial.drop()
            detail = f"expected {digest.expected}, got {digest.value}"
            raise PullFailed(f"{text} twice: the hub's file or this machine is broken", detail=detail)
        self._note(f"{text}: it is fetched once more")
        partial.restart(Identity(identity.etag, identity.size, identity.wrong + 1))

    def _locate(self) -> Location:
        """Where the file is; waits for passing trouble to be over."""
        said = ""
        backoff = Backoff(self._limits.backoff_first_s, self._limits.backoff_most_s)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                location = self._ask()
                self._waits = None
                return location
            except Passing as trouble:
                wait_s = backoff.failed(started, trouble.retry_after_s)
                self._waits = f"{trouble.reason}; next try in {wait_s:.0f} s"
                if trouble.reason != said:
                    log.warning("pull_waits file=%s reason=%s", self._target.name, trouble.reason)
                said = trouble.reason
                self._stop.wait(wait_s)
        raise Stopped

    def _ask(self) -> Location:
        """Ask the hub in a thread that is left behind, until its own time is over, when the download is stopped."""
        answers: list[Location | Exception] = []
        asked = threading.Event()

        def top() -> None:
            try:
                answers.append(self._source.locate())
            except Exception as error:  # noqa: BLE001 - the top of a thread; raised below
                answers.append(error)
            asked.set()

        threading.Thread(target=top, name="llmlb-pull-ask", daemon=True).start()
        while not asked.wait(ASKING_S):
            if self._stop.is_set():
                raise Stopped
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def _expected(self, location: Location) -> str | None:
        """The digest to check. The hub's ETag is the sha256 of an LFS file and wins over an older listing; of small
        files a mirror's ETag may be anything, so the listing wins."""
        if self._oid is not None and (len(self._oid) != 64 or len(location.etag) != 64):
            return self._oid
        if not _OID.fullmatch(location.etag):
            return self._oid
        if self._oid is not None and location.etag != self._oid:
            self._note(f"{self._target.name} is not the file that the repo listed any more")
        return location.etag

    def _is_there(self, oid: str) -> bool:
        """True when the target is whole already."""
        try:
            size = self._target.stat().st_size
            digest = Digest(oid, size)
            self.count.total = self.count.done = size
            with self._target.open("rb") as file:
                while (data := file.read(STEP_BYTES)) and not self._stop.is_set():
                    digest.update(data)
                    self.count.hashed += len(data)
        except OSError:
            return False
        if not digest.right:
            self.count.total = self.count.done = self.count.hashed = 0
        return digest.right

    def _downloaded(self, oid: str | None) -> Downloaded:
        return Downloaded(self._target, self.count.total, oid, self.count.fetched)

    def _note(self, text: str | None) -> None:
        if text is not None:
            log.warning("pull_restarts file=%s reason=%s", self._target.name, text)
            self._say(text)
