"""How many connections a download has at the moment: one more where those that are there mostly wait for bytes.

Several connections help where one is slow: far away, or held back by the server. Where bytes come as fast as they can
be written they only get in each other's way, as a file is written by one at a time: 400 MB over loopback on 2 busy
cores took 0.7 s of CPU with one connection, 1.1 to 1.4 with two, 1.1 to 2.0 with four. So a download begins with one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LOOK_S = 0.1
"""So long is watched before the number changes."""
MORE, LESS = 0.5, 0.2
"""Share of their time that connections wait for bytes, above which another one joins, and below which one leaves."""


class Pace:
    """Workers say what they do; :meth:`wanted` may be asked by any thread. ``clock``: seconds."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._lock = threading.Lock()
        self._wanted = 1
        self._since: list[float | None] = [None] * most
        """When each began to wait; None: it does not wait."""
        self._begun: list[float | None] = [None] * most
        """From when on each has its part in the time that is looked at; None: it has no request under way."""
        self._waited = [0.0] * most
        self._spent = [0.0] * most
        self._looked_at = clock()

    def begins(self, number: int) -> None:
        """A request goes out."""
        self._begun[number] = self._since[number] = self._clock()

    def waits(self, number: int) -> None:
        """There is nothing to read."""
        self._since[number] = self._clock()

    def goes_on(self, number: int) -> None:
        """Bytes are there."""
        if (since := self._since[number]) is not None:
            self._waited[number] += max(0.0, self._clock() - max(since, self._looked_at))
            self._since[number] = None

    def ends(self, number: int) -> None:
        """The request is over."""
        self.goes_on(number)
        if (begun := self._begun[number]) is not None:
            self._spent[number] += max(0.0, self._clock() - max(begun, self._looked_at))
            self._begun[number] = None

    def wanted(self) -> int:
        """How many connections there should be; at least one."""
        with self._lock:
            now = self._clock()
            if now - self._looked_at >= LOOK_S:
                self._look(now)
            return self._wanted

    def _look(self, now: float) -> None:
        """A worker that moves on at this moment spoils a part of one look, and no more."""
        waited, spent = sum(self._waited), sum(self._spent)
        for number in range(self._most):
            since, begun = self._since[number], self._begun[number]
            waited += 0.0 if since is None else max(0.0, now - max(since, self._looked_at))
            spent += 0.0 if begun is None else max(0.0, now - max(begun, self._looked_at))
        self._waited, self._spent, self._looked_at = [0.0] * self._most, [0.0] * self._most, now
        if spent <= 0.0:
            return
        share = waited / spent
        if share > MORE:
            self._wanted = min(self._most, self._wanted + 1)
        elif share < LESS:
            self._wanted = max(1, self._wanted - 1)
