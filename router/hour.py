"""How many things happened in the last hour. Pure; a sliding window of 10 s pieces, at most 361 of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable


class HourCount:
    """Counts moments of a clock that is not ours (the bus's), which :meth:`now_is` tells.

    Until then nothing is old. A moment that lies ahead of the clock counts until it is an hour old.
    """

    SPAN_S = 3600.0
    PIECE_S = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ahead = 0.0
        """The other clock minus ours."""
        self._known = False
        self._counts: dict[int, int] = {}

    def now_is(self, now: float) -> None:
        """The other clock shows ``now``, in seconds."""
        self._ahead, self._known = now - self._clock(), True

    def now(self) -> float:
        """What the other clock shows, as far as it is known."""
        return self._clock() + self._ahead

    def add(self, moments: Iterable[float]) -> None:
        for moment in moments:
            piece = int(moment // self.PIECE_S)
            self._counts[piece] = self._counts.get(piece, 0) + 1
        self._forget()

    def total(self) -> int:
        self._forget()
        return sum(self._counts.values())

    def _forget(self) -> None:
        if self._known:
            oldest = int((self.now() - self.SPAN_S) // self.PIECE_S)
            for piece in [piece for piece in self._counts if piece < oldest]:
                del self._counts[piece]
