"""Writing to the store so that a crash at any moment leaves the old or the new, never half of it; reading bounded."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any, BinaryIO

import orjson

MAX_JSON_BYTES = 16 * 1024 * 1024
_TEMPORARY = ".tmp"


def open_file(path: Path) -> BinaryIO:
    """Open it to be read. Raises OSError, also for what is no file: opening a pipe would wait for its writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "Is a directory" if stat.S_ISDIR(mode) else "Is no file", str(path))
    return os.fdopen(fd, "rb")


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object. Raises OSError, ValueError (too large, no JSON, nested without end, no object)."""
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path.name} is larger than {limit} bytes")
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def read_text(path: Path, limit: int) -> str:
    """A text, what is not UTF-8 replaced. Raises OSError, ValueError (too large)."""
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path.name} is larger than {limit} bytes")
    return data.decode("utf-8", "replace")


def sync_folder(folder: Path) -> None:
    """Renames and removals in a folder reach the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, so that they are there after a power failure, too. Raises OSError."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def write_whole(path: Path, data: bytes) -> None:
    """The file holds ``data`` and it is on the disk, or holds what it held before. Raises OSError."""
    temporary = path.with_name(f".{path.name}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename, replacing what is there; on another disk (an owner's folder that is a link) a synced copy is renamed.

    The folders are not synced. Raises OSError.
    """
    try:
        source.replace(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    temporary = target.with_name(f".{target.name}{_TEMPORARY}")
    try:
        with source.open("rb") as read, temporary.open("wb") as written:
            shutil.copyfileobj(read, written, 8 * 1024 * 1024)
            written.flush()
            os.fsync(written.fileno())
        temporary.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    source.unlink()


def in_any_case(folder: Path, *names: str) -> Path:
    """The path below ``folder`` of these names: of what is there in other letters, small or capital, if not exactly so.

    The hub takes a repo's name in any case, and answers with its own: one repo must not become two folders.
    """
    for name in names:
        exact = folder / name
        if not exact.exists():
            with contextlib.suppress(OSError):
                there = sorted(each.name for each in folder.iterdir() if each.name.lower() == name.lower())
                exact = folder / next(iter(there), name)
        folder = exact
    return folder


def remove_empty(folder: Path, stop: Path) -> None:
    """Remove a folder and those above it, up to ``stop``, as long as they are empty."""
    while folder != stop and stop in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
