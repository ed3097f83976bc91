"""The digest of a file that is read as it grows."""

from __future__ import annotations

import hashlib
from typing import Any

from llmlb.bus.errors import PullFailed
from llmlb.node.pull.partial import Partial

STEP_BYTES = 1024 * 1024
"""Read and hashed at once: stays in the cache of the core between the two."""


class Digest:
    """sha256, or git's sha1 of a blob, by the length of what is expected."""

    def __init__(self, oid: str | None, size: int) -> None:
        self.expected = oid
        self._hash: Any = None
        if oid is not None and len(oid) == 64:
            self._hash = hashlib.sha256()
        elif oid is not None:
            self._hash = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        self.kind = "sha256" if self._hash is not None and self._hash.name == "sha256" else "git sha1"

    @property
    def needed(self) -> bool:
        return self._hash is not None

    def update(self, data: bytes | memoryview) -> None:
        """Of a large piece: other threads run meanwhile."""
        self._hash.update(data)

    @property
    def value(self) -> str | None:
        return None if self._hash is None else str(self._hash.hexdigest())

    @property
    def right(self) -> bool:
        return self.value == self.expected


class Follower:
    """Hashes a partial file behind those who write it, from its beginning to the first gap."""

    def __init__(self, partial: Partial, digest: Digest) -> None:
        self._partial, self._digest = partial, digest
        self._step = memoryview(bytearray(min(STEP_BYTES, partial.size) if digest.needed else 0))
        self.at = 0
        """Bytes from the beginning that are hashed."""
        self.behind = 0
        """Bytes that could be hashed at once, when it was looked last."""

    def follow(self, least: int = 1) -> bool:
        """Hash one step. False when less than ``least`` bytes are there. Raises PullFailed."""
        ready = self._partial.prefix_bytes(self.at) - self.at
        if not self._digest.needed:
            self.at += ready
            return False
        self.behind = ready
        if ready < least:
            return False
        count = self._partial.read_into(self._step[: min(ready, len(self._step))], self.at)
        if not count:
            raise PullFailed(f"{self._partial.path.name} has become shorter than it was")
        self._digest.update(self._step[:count])
        self.at += count
        return True
