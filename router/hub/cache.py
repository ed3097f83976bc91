"""What the hub said, kept in memory and on the disk, so that it can be said again when the hub is away.

``LLMLB_HOME/hub-cache``: one JSON file an answer, written whole or not at all, shared by the processes of a router. A
disk that is full, or a file that was damaged, costs the answer and nothing else. At most MOST_FILES files of
MOST_BYTES together; those that were written longest ago go first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

log = logging.getLogger("llmlb.router.hub.cache")

IN_MEMORY = 2_000
"""Answers; the one that was used longest ago goes first."""
MOST_FILES = 5_000
MOST_BYTES = 128 * 1024 * 1024
PRUNE_EVERY = 200
"""Writes between two looks at how much there is."""
MAX_FILE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """``at``: when the hub said it, Unix seconds."""

    value: Any
    at: float

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.at)


class Cache:
    """Values by key; a value is whatever JSON can hold, and must not be changed by who reads it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._memory: OrderedDict[str, Kept] = OrderedDict()
        self._writes = 0
        self._said = ""

    async def get(self, key: str) -> Kept | None:
        kept = self._memory.get(key)
        if kept is None:
            kept = await asyncio.to_thread(self._read, key)
            if kept is None:
                return None
            # Somebody may have put a newer one meanwhile.
            kept = self._memory.setdefault(key, kept)
        self._remember(key, kept)
        return kept

    async def get_many(self, keys: Sequence[str]) -> list[Kept | None]:
        """As :meth:`get` for each, with one look at the disk for all."""
        missing = [key for key in keys if key not in self._memory]
        if missing:
            read = await asyncio.to_thread(lambda: [self._read(key) for key in missing])
            for key, kept in zip(missing, read, strict=True):
                if kept is not None and key not in self._memory:
                    self._remember(key, kept)
        return [self._memory.get(key) for key in keys]

    async def put(self, key: str, value: Any) -> None:
        """Keep it, with the time of now. Never raises."""
        kept = Kept(value, time.time())
        self._remember(key, kept)
        self._writes += 1
        await asyncio.to_thread(self._write, key, kept, prune=self._writes % PRUNE_EVERY == 1)

    def _remember(self, key: str, kept: Kept) -> None:
        self._memory[key] = kept
        self._memory.move_to_end(key)
        while len(self._memory) > IN_MEMORY:
            self._memory.popitem(last=False)

    def _file(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"

    def _read(self, key: str) -> Kept | None:
        path = self._file(key)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                return None
            body = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._say("hub_cache_not_read", error)
            return None
        if not isinstance(body, dict) or body.get("key") != key or not isinstance(body.get("at"), float):
            return None
        return Kept(body.get("value"), body["at"])

    def _write(self, key: str, kept: Kept, *, prune: bool) -> None:
        made: str | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            body = orjson.dumps({"key": key, "at": kept.at, "value": kept.value})
            # Two processes of a router may write the same key: each has a file of its own until it is whole.
            handle, made = tempfile.mkstemp(dir=self._folder, prefix=".new-")
            with os.fdopen(handle, "wb") as file:
                file.write(body)
            Path(made).replace(self._file(key))
            made = None
            if prune:
                self._prune()
        except (OSError, TypeError, ValueError) as error:
            self._say("hub_cache_not_written", error)
        finally:
            if made is not None:
                with contextlib.suppress(OSError):
                    Path(made).unlink()

    def _prune(self) -> None:
        """Also takes away what a process that was killed left half written, an hour later."""
        found, total = [], 0
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                if path.name.startswith(".new-"):
                    if time.time() - stat.st_mtime > 3600:
                        path.unlink()
                elif path.suffix == ".json":
                    found.append((stat.st_mtime, stat.st_size, path))
                    total += stat.st_size
        found.sort(key=lambda each: each[0])
        count = len(found)
        for _, size, path in found:
            if count <= MOST_FILES and total <= MOST_BYTES:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            count, total = count - 1, total - size

    def _say(self, event: str, error: Exception) -> None:
        """One line a kind of trouble."""
        if (line := f"{event} {type(error).__name__}") not in self._said:
            self._said = line
            log.warning("%s error=%s", event, error)
