"""What the headers of weight files say, read once as long as the file stays the same.

Reading a header takes some 20 ms for each 100,000 words of its vocabulary, so those of GGUF files are kept over
restarts, too: with 200 models a node would otherwise be busy for half a minute when it starts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

from llmlb.node.store.files import read_object, write_whole
from llmlb.node.store.gguf import GgufInfo, read_gguf
from llmlb.node.store.safetensors import SafetensorsInfo, read_safetensors

log = logging.getLogger("llmlb.node.store.headers")

T = TypeVar("T")
MAX_KEPT = 4_096
"""Headers kept; with more files all are forgotten and read again."""
FILE = ".headers.json"
FORMAT = 1
"""Rises when :func:`read_gguf` finds out something else from the same file."""
MAX_FILE_BYTES = 256 * 1024 * 1024


class HeaderCache(Generic[T]):
    """Remembers what ``read`` found in a file by its path, time of change and size. Safe from several threads."""

    def __init__(self, read: Callable[[Path], T]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self.kept: dict[str, tuple[int, int, T]] = {}
        """Path → time of change in ns, size in bytes, what the header says."""
        self.changed = False
        """Something was read since this was last set to False."""

    def get(self, path: Path) -> T:
        """Raises what ``read`` raises, and OSError; failures are not kept."""
        there = path.stat()
        key = str(path)
        kept = self.kept.get(key)
        if kept is not None and kept[:2] == (there.st_mtime_ns, there.st_size):
            return kept[2]
        info = self._read(path)
        with self._lock:
            if len(self.kept) >= MAX_KEPT:
                self.kept.clear()
            self.kept[key] = (there.st_mtime_ns, there.st_size, info)
            self.changed = True
        return info


gguf: HeaderCache[GgufInfo] = HeaderCache(read_gguf)
safetensors: HeaderCache[SafetensorsInfo] = HeaderCache(read_safetensors)


def load(root: Path) -> None:
    """Take over the headers that were kept in a store. Never raises: what can't be used is read from the files."""
    try:
        value = read_object(root / FILE, MAX_FILE_BYTES)
        if value.get("format") == FORMAT:
            found = {str(path): _entry(entry) for path, entry in value["files"].items()}
            gguf.kept = {**found, **gguf.kept}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        log.warning("headers_not_used error=%r", error)


def save(root: Path) -> None:
    """Keep the headers of the files that are there now, if any is new. Never raises."""
    if not gguf.changed or not root.is_dir():
        return
    gguf.changed = False
    there = [(path, kept) for path, kept in list(gguf.kept.items()) if _is_text(path) and Path(path).exists()]
    kept = {path: (*at, asdict(info)) for path, (*at, info) in there}
    try:
        write_whole(root / FILE, orjson.dumps({"format": FORMAT, "files": kept}))
    except (OSError, TypeError) as error:
        log.warning("headers_not_kept error=%r", error)


def _is_text(path: str) -> bool:
    """False for a name that is not UTF-8, which JSON can't hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entry(value: Any) -> tuple[int, int, GgufInfo]:
    """Raises TypeError, ValueError, KeyError."""
    changed, size, info = value
    metadata = {str(key): one for key, one in info["metadata"].items() if isinstance(one, str | int | float)}
    texts = {key: info[key] for key in ("quantization", "chat_template", "license")}
    numbers = {key: info[key] for key in ("parameters", "context_length")}
    if not all(one is None or isinstance(one, str) for one in texts.values()):
        raise ValueError("a text that is none")
    if not all(one is None or type(one) is int for one in numbers.values()):
        raise ValueError("a number that is none")
    whole = GgufInfo(
        architecture=str(info["architecture"]),
        size_bytes=int(info["size_bytes"]),
        metadata=metadata,
        **texts,
        **numbers,
    )
    return int(changed), int(size), whole
