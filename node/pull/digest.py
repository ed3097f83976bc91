"""The digest of a file that is read as it grows."""

from __future__ import annotations

import hashlib
from typing import Any


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

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    @property
    def value(self) -> str | None:
        return None if self._hash is None else str(self._hash.hexdigest())

    @property
    def right(self) -> bool:
        return self.value == self.expected
