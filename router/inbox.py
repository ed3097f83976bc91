"""The replies to one attempt, in order, checked for gaps and silence."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from llmlb.bus.errors import EngineStalled, LlmlbError, NodeLost
from llmlb.bus.messages.infer import Accepted, Delta, Embedded, End, Failed, Progress

Reply = Progress | Delta | Embedded | End | Failed
"""What a reader gets. ``accepted`` is only noted: nobody has to be woken up for it."""

CHUNKS_MAX = 100_000
"""Replies one stream may hold for a reader that does not read; more is a failure of the request."""
ACCEPT_TIMEOUT_S = 5.0
"""A node that lives answers ``accepted`` at once, before any work."""


class Interrupted(NodeLost):
    """The bus was away meanwhile: replies may be lost, and it is no node's fault."""


class Nobody(NodeLost):
    """Nobody listens on the node's subjects: its process is gone."""


class Inbox:
    """Filled by the one subscription of a gateway, read by the one who waits for the answer.

    It has no clock of its own: its owner calls :meth:`look` now and then, which is when silence is found out.
    """

    __slots__ = ("_failed", "_items", "_next_seq", "_reader", "direct", "heard_at", "key")

    def __init__(self, key: str = "") -> None:
        """``key``: whose request it is; see :attr:`llmlb.router.call.Call.key`."""
        self.key = key
        self._items: deque[Reply | LlmlbError] = deque()
        self._reader: asyncio.Future[None] | None = None
        """While the reader waits for the next reply."""
        self._next_seq = 0
        self._failed = False
        self.direct: Callable[[Delta], bool] | None = None
        """Takes a piece of text while the reader waits and nothing is before it. False: it goes to the reader."""
        self.heard_at = time.monotonic()
        """When the last reply came."""

    def put(self, item: Accepted | Reply) -> None:
        """The next reply. A wrong number, or one more than fits, becomes a failure in its place."""
        self.heard_at = time.monotonic()
        if self._failed:
            return
        if item.seq != self._next_seq:
            self.fail(NodeLost(f"a gap in the answer: number {item.seq} after {self._next_seq - 1}"))
            return
        self._next_seq += 1
        if isinstance(item, Delta):
            if self._reader is not None and not self._items and self.direct is not None and self.direct(item):
                return
        elif isinstance(item, Accepted):
            return
        if len(self._items) >= CHUNKS_MAX:
            self.fail(NodeLost("the answer was not read in time"))
            return
        self._items.append(item)
        self._wake()

    def fail(self, error: LlmlbError) -> None:
        """Raise this after what is there already. What comes after the first is not kept: nobody goes on reading."""
        if self._failed:
            return
        self._failed = True
        self._items.append(error)
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def look(self, now: float, stall_s: float) -> None:
        """Fail when its reader waits and nothing came for too long. ``now`` is of the monotonic clock."""
        silent_s = now - self.heard_at
        if self._reader is None or self._items:
            return
        if not self._next_seq:
            if silent_s >= ACCEPT_TIMEOUT_S:
                self.fail(NodeLost(f"the node did not accept the request within {ACCEPT_TIMEOUT_S:.0f} s"))
        elif silent_s >= stall_s:
            self.fail(EngineStalled(f"no sign of life from the node for {stall_s:.0f} s"))

    async def get(self) -> Reply:
        """The next reply. Raises what it failed with."""
        if not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        item = self._items.popleft()
        if isinstance(item, LlmlbError):
            raise item
        return item
