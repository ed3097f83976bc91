"""The address of a content, renewed while it is fetched."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llmlb.node.pull.hub import Location


class Changed(Exception):
    """The hub has other content now, to be found at ``location``."""

    def __init__(self, location: Location) -> None:
        super().__init__(location.etag)
        self.location = location


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
