"""Looks again and again while there is something to look at: an idle process is not woken for nothing.

Each wake-up of an idle one costs some 0.1 ms, of which a model that computes on a small machine is the one to pay.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

TICK_S = 0.25
REST_S = 30.0
"""Between two looks while nothing is under way: what is only put in order has time."""


class Lookout:
    """Calls ``look`` with the monotonic time, each 0.25 s from :meth:`began` until as many have :meth:`ended`."""

    def __init__(self, look: Callable[[float], None]) -> None:
        self._look = look
        self._under_way = 0
        self._stir = asyncio.Event()

    def began(self) -> None:
        """Something is under way; one more than before."""
        self._under_way += 1
        if self._under_way == 1:
            self._stir.set()

    def ended(self) -> None:
        """One less: for each :meth:`began` one of these, whatever happens."""
        self._under_way -= 1

    async def run(self) -> None:
        """Look until cancelled. What began just now is looked at 0.25 s later, and what is over once more."""
        while True:
            if not self._under_way:
                self._stir.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REST_S):
                        await self._stir.wait()
            await asyncio.sleep(TICK_S)
            self._look(time.monotonic())
