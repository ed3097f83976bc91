"""The replies to one attempt, in order, checked for gaps and silence."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from llmlb.bus.errors import EngineStalled, LlmlbError, NodeLost
from llmlb.bus.messages.infer import Accepted, Delta, Embedded, End, Failed, Progress

Reply = Accepted | Progress | Delta | Embedded | End | Failed

CHUNKS_MAX = 100_000
"""Replies one stream may hold for a reader that does not read; more is a failure of the request."""


class Interrupted(NodeLost):
    """The bus was away meanwhile: replies may be lost, and it is no node's fault."""


class Nobody(NodeLost):
    """Nobody listens on the node's subjects: its process is gone."""


class Inbox:
    """Filled by the one subscription of a gateway, read by the one who waits for the answer."""

    __slots__ = ("_arrived", "_items", "_next_seq", "_reader_waits", "direct", "heard_at")

    def __init__(self) -> None:
        self._items: deque[Reply | LlmlbError] = deque()
        self._arrived = asyncio.Event()
        self._next_seq = 0
        self._reader_waits = False
        self.direct: Callable[[Delta], bool] | None = None
        """Takes a piece of text while the reader waits and nothing is before it. False: it goes to the reader."""
        self.heard_at = time.monotonic()
        """When the last reply came."""

    def put(self, item: Reply) -> None:
        """The next reply. A wrong number, or one more than fits, becomes a failure in its place."""
        self.heard_at = time.monotonic()
        if item.seq != self._next_seq:
            self.fail(NodeLost(f"a gap in the answer: number {item.seq} after {self._next_seq - 1}"))
            return
        self._next_seq += 1
        direct = self.direct if self._reader_waits and not self._items and isinstance(item, Delta) else None
        if direct is not None and direct(item):  # type: ignore[arg-type]  # it is a Delta
            return
        if len(self._items) >= CHUNKS_MAX:
            self.fail(NodeLost("the answer was not read in time"))
            return
        self._items.append(item)
        self._arrived.set()

    def fail(self, error: LlmlbError) -> None:
        """Raise this after what is there already."""
        self._items.append(error)
        self._arrived.set()

    async def get(self, timeout_s: float) -> Reply:
        """The next reply. Raises EngineStalled after ``timeout_s`` of silence, or what it failed with."""
        while not self._items:
            left_s = self.heard_at + timeout_s - time.monotonic()
            if left_s <= 0:
                raise EngineStalled(f"no sign of life from the node for {timeout_s:.0f} s")
            self._arrived.clear()
            self._reader_waits = True
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with a reply.
                async with asyncio.timeout(left_s):
                    await self._arrived.wait()
            except TimeoutError:
                pass  # what went the direct way meanwhile counts as well
            finally:
                self._reader_waits = False
        item = self._items.popleft()
        if isinstance(item, LlmlbError):
            raise item
        return item
