"""A file on its way: what is on the disk, what of it can be trusted after a crash, and who may write it.

Beside the target lie ``<target>.part``, of full size and sparse, and ``<target>.part.map``: a header, then a byte for
each block of 128 KiB: missing, written, or synced. The map is the lock (flock), so two downloads never write one file.

What is trusted on resuming:

- The process died (kill -9): everything that was written. The kernel has it; a block is marked after its bytes were
  handed over. Lost is the block each connection was filling.
- The machine died (the boot id differs): only what was synced. Data is fdatasync'ed before its blocks are marked so,
  by one thread, each 4 MiB or second; on a slow disk as often as it manages. Lost is what came since.

The map's blocks are overwritten in place, one byte each, so no torn record exists. Whatever the map says, the digest of
the whole file is checked at the end.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from llmlb.bus.errors import Conflict, LlmlbError, OutOfDisk, PullFailed

BLOCK = 128 * 1024
HEADER_BYTES = 4096
FORMAT = 1
MARGIN_BYTES = 64 * 1024 * 1024
"""Stays free on the disk: logs, the bus and the manifest are written there too."""

_MISSING, _WRITTEN, _SYNCED = 0, 1, 2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Identity:
    """Which content is being fetched. ``wrong``: how often its digest was not what it should be."""

    etag: str
    size: int
    wrong: int = 0


def disk_error(error: OSError, path: Path) -> LlmlbError:
    """A failed write in llmlb's terms: OutOfDisk when the disk or the quota is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfDisk(f"the disk is full: {path.name} can't be written; what is there stays", detail=str(path))
    return PullFailed(f"{path.name} can't be written: {error.strerror}", detail=str(path))


def _boot_id() -> str:
    """Of this start of the machine; empty where there is none, and then only what was synced counts."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class Partial:
    """The partial file of one target. `write` and `mark` are called by several threads, the rest by one."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.map_path = target.with_name(f"{target.name}.part.map")
        self.identity: Identity | None = None
        self._file = self._map = -1
        self._lock = threading.Lock()
        self._state = bytearray()
        self._dirty: list[tuple[int, int]] = []

    def open(self) -> None:
        """Take the lock. Raises Conflict when another download has it, PullFailed or OutOfDisk when there is no way."""
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            while True:
                self._map = os.open(self.map_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                fcntl.flock(self._map, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current():
                    break
                os.close(self._map)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except BlockingIOError as error:
            self.close()
            raise Conflict(f"{self.target.name} is being downloaded already", detail=str(self.path)) from error
        except OSError as error:
            self.close()
            raise disk_error(error, self.path) from error

    def _is_current(self) -> bool:
        """False when the map was removed, by the one who finished, between our open and our lock."""
        try:
            there = os.stat(self.map_path)
        except FileNotFoundError:
            return False
        return there.st_ino == os.fstat(self._map).st_ino

    def resume(self, etag: str, size: int) -> str | None:
        """Go on with what is there, or start anew. Returns why it is not gone on with, None when it is or nothing was.

        Raises OutOfDisk when the rest does not fit.
        """
        try:
            why = self._resume(etag, size)
            self._check_room(size)
        except OSError as error:
            raise disk_error(error, self.path) from error
        return why

    def _resume(self, etag: str, size: int) -> str | None:
        found = self._header()
        if found is None or os.fstat(self._file).st_size != found[0].size:
            self._start(Identity(etag, size))
            return None
        identity, boot = found
        if (identity.etag, identity.size) != (etag, size):
            self._start(Identity(etag, size))
            return f"{self.target.name} has changed on the hub (ETag {identity.etag[:12]} is now {etag[:12]})"
        self.identity = identity
        self._state = bytearray(os.pread(self._map, self._blocks(size), HEADER_BYTES))
        self._state.extend(bytes(self._blocks(size) - len(self._state)))
        if not boot or boot != _boot_id():
            self._state = bytearray(_SYNCED if each == _SYNCED else _MISSING for each in self._state)
            os.pwrite(self._map, self._state, HEADER_BYTES)
            self._write_header()
            os.fsync(self._map)
        return None

    def restart(self, identity: Identity) -> None:
        """Throw away what is there and begin with other content, or with the same once more."""
        try:
            self._start(identity)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def _start(self, identity: Identity) -> None:
        os.ftruncate(self._map, 0)
        os.ftruncate(self._file, 0)
        self._state = bytearray()
        self._check_room(identity.size)  # before the map is made: of a size that is a lie it fills the memory
        os.ftruncate(self._file, identity.size)
        self.identity = identity
        self._dirty = []
        self._state = bytearray(self._blocks(identity.size))
        os.pwrite(self._map, self._state, HEADER_BYTES)
        self._write_header()
        os.fsync(self._map)
        _sync_folder(self.path.parent)

    def _check_room(self, size: int) -> None:
        needed = size - self.done_bytes()
        free = shutil.disk_usage(self.path.parent).free
        if needed > 0 and free < needed + min(MARGIN_BYTES, needed):
            message = f"{self.target.name} needs {needed} more bytes, and {free} are free in {self.path.parent}"
            raise OutOfDisk(message, detail=str(self.path))

    def _header(self) -> tuple[Identity, str] | None:
        """(what the map is of, boot id), None when there is no readable header."""
        try:
            value = json.loads(os.pread(self._map, HEADER_BYTES, 0) or b"null")
            if value["format"] != FORMAT or value["block"] != BLOCK:
                return None
            identity = Identity(str(value["etag"]), int(value["size"]), int(value["wrong"]))
            return (identity, str(value["boot"])) if identity.size >= 0 else None
        except (ValueError, TypeError, KeyError):
            return None

    def _write_header(self) -> None:
        assert self.identity is not None
        value = {"format": FORMAT, "block": BLOCK, "boot": _boot_id(), **asdict(self.identity)}
        os.pwrite(self._map, json.dumps(value).encode().ljust(HEADER_BYTES), 0)

    @staticmethod
    def _blocks(size: int) -> int:
        return -(-size // BLOCK)

    @property
    def size(self) -> int:
        assert self.identity is not None
        return self.identity.size

    def done_bytes(self) -> int:
        """Bytes that need not be fetched again."""
        with self._lock:
            done = len(self._state) - self._state.count(_MISSING)
            short = len(self._state) * BLOCK - self.size if self._state and self._state[-1] != _MISSING else 0
        return done * BLOCK - short

    def missing(self) -> list[tuple[int, int]]:
        """The byte ranges (start, end) still to fetch, in order."""
        ranges: list[tuple[int, int]] = []
        with self._lock:
            at = self._state.find(_MISSING)
            while at >= 0:
                end = at
                while end < len(self._state) and self._state[end] == _MISSING:
                    end += 1
                ranges.append((at * BLOCK, min(end * BLOCK, self.size)))
                at = self._state.find(_MISSING, end)
        return ranges

    def prefix_bytes(self, known: int = 0) -> int:
        """Bytes from the beginning without a gap. ``known``: so many are there for sure, and are not looked at."""
        with self._lock:
            first = self._state.find(_MISSING, known // BLOCK)
        return self.size if first < 0 else first * BLOCK

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Raises OutOfDisk or PullFailed."""
        try:
            view = memoryview(data)
            while view:
                count = os.pwrite(self._file, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise disk_error(error, self.path) from error

    def mark(self, start: int, end: int) -> int:
        """Note that bytes from ``start`` (of a block) to ``end`` are written. Returns where the whole blocks end."""
        first, last = start // BLOCK, self._blocks(end) if end == self.size else end // BLOCK
        if last <= first:
            return start
        with self._lock:
            self._state[first:last] = bytes([_WRITTEN]) * (last - first)
            self._dirty.append((first, last))
        try:
            os.pwrite(self._map, bytes([_WRITTEN]) * (last - first), HEADER_BYTES + first)
        except OSError as error:
            raise disk_error(error, self.path) from error
        return min(last * BLOCK, self.size)

    def unsynced_bytes(self) -> int:
        with self._lock:
            return sum(last - first for first, last in self._dirty) * BLOCK

    def sync(self) -> None:
        """Bring what was marked to the disk, then say so in the map. Blocks; called by one thread at a time."""
        with self._lock:
            dirty, self._dirty = self._dirty, []
        if not dirty:
            return
        try:
            os.fdatasync(self._file)
            for first, last in dirty:
                with self._lock:
                    self._state[first:last] = bytes([_SYNCED]) * (last - first)
                os.pwrite(self._map, bytes([_SYNCED]) * (last - first), HEADER_BYTES + first)
            os.fdatasync(self._map)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Read what was written back, into memory that is there already. Returns how many bytes. Raises PullFailed."""
        try:
            return os.preadv(self._file, [buffer], offset)
        except OSError as error:
            raise PullFailed(f"{self.path.name} can't be read back: {error.strerror}", detail=str(self.path)) from error

    def finish(self) -> None:
        """Sync, rename to the target, sync the folder, remove the map."""
        try:
            os.fsync(self._file)
            os.replace(self.path, self.target)
            _sync_folder(self.target.parent)
            os.unlink(self.map_path)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def drop(self) -> None:
        """Remove what is there, for a download that is not wanted any more or was not needed. Keeps the lock."""
        for path in (self.path, self.map_path):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give back the lock. What is on the disk stays."""
        for fd in (self._file, self._map):
            if fd >= 0:
                os.close(fd)
        self._file = self._map = -1


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
