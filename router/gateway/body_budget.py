"""How much the large bodies of one gateway process may take together, so that many clients can't fill its memory.

A body that is announced is counted before it is read, one in chunks as it comes, until its request is over. Small ones
are not counted: there are at most as many as connections, and they cost nothing more here. Beyond the budget a request
gets a 503 with Retry-After; what is under way goes on.
"""

from __future__ import annotations

import os

from llmlb.bus.errors import CapacityError
from llmlb.bus.settings import Settings

LEAST_BYTES = 1024 * 1024
"""Bodies up to here are not counted."""
MOST_BYTES = 1024 * 1024 * 1024
MEMORY_SHARE = 8
"""While it is answered a body is there some three times: as it came, as text, as a message of the bus."""


class BodyBudget:
    """Bytes of large bodies under way, of at most ``total``."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0

    def take(self, size: int) -> None:
        """Give it back with :meth:`give`. Raises CapacityError when there is no room, and takes nothing."""
        if self.taken + size > self.total:
            raise CapacityError("other large requests are under way and take all memory for them; try again shortly")
        self.taken += size

    def give(self, size: int) -> None:
        self.taken -= size


class Held:
    """What the request of one connection has of the budget."""

    __slots__ = ("_budget", "_bytes")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._bytes = 0

    def grow(self, size: int) -> None:
        """The body has so many bytes, so far or in all. Raises CapacityError."""
        if size > LEAST_BYTES and size > self._bytes:
            self._budget.take(size - self._bytes)
            self._bytes = size

    def release(self) -> None:
        """The request is over."""
        if self._bytes:
            self._budget.give(self._bytes)
            self._bytes = 0


def budget_of(settings: Settings, *, processes: int = 1) -> BodyBudget:
    """One process's share; never less than one body."""
    total = settings.body_budget_bytes
    if total is None:
        total = min(MOST_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_SHARE)
    return BodyBudget(max(total // processes, settings.max_body_bytes))
