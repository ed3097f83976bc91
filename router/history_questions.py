"""Questions to the request history, from threads of their own: a few at a time, and none that lasts for ever."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from llmlb.bus.errors import DeadlineExceeded, HistoryDown, QueueFull
from llmlb.router import history_query
from llmlb.router.history_query import QueryTimeout, RequestFilter
from llmlb.router.store import damaged

READERS = 2
QUESTIONS_MAX = 32
"""Questions that may wait for a reader."""

T = TypeVar("T")


class Questions:
    """``on_damaged`` is called when the database turns out to be broken."""

    def __init__(self, path: Path, on_damaged: Callable[[sqlite3.Error], None]) -> None:
        self._path = path
        self._on_damaged = on_damaged
        self._reading = ThreadPoolExecutor(READERS, "history-read")
        self._asked = 0

    async def find(self, wanted: RequestFilter) -> tuple[list[dict[str, Any]], bool]:
        """The requests, newest first, without bodies; and whether there are more.

        Raises HistoryDown, DeadlineExceeded (the question takes too long), QueueFull (too many questions).
        """
        return await self._ask(lambda: history_query.find(self._path, wanted))

    async def get(self, request_id: str) -> dict[str, Any] | None:
        """One request with bodies and attempts, or None. Raises as :meth:`find`."""
        return await self._ask(lambda: history_query.get(self._path, request_id))

    async def _ask(self, question: Callable[[], T]) -> T:
        if self._asked >= QUESTIONS_MAX:
            raise QueueFull("too many questions to the request history at the same time")
        loop = asyncio.get_running_loop()
        work = self._reading.submit(question)
        self._asked += 1
        # Not when it is given up: its thread goes on.
        work.add_done_callback(lambda _: self._in(loop, self._answered))
        try:
            return await asyncio.wrap_future(work)
        except QueryTimeout:
            raise DeadlineExceeded("that takes too long; name a shorter time with since and until") from None
        except sqlite3.Error as error:
            if damaged(error):
                self._on_damaged(error)
            raise HistoryDown("the request history can't be read at the moment", detail=str(error)) from error

    def _answered(self) -> None:
        self._asked -= 1

    @staticmethod
    def _in(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(what)

    def close(self) -> None:
        """Questions that did not begin are given up."""
        self._reading.shutdown(wait=False, cancel_futures=True)
