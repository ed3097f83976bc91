"""One request on a node, from when it is accepted to its last reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from llmlb.bus.errors import InvalidRequest, MessageTooLarge
from llmlb.bus.messages.infer import BulkInferRequest
from llmlb.node.engine.pool_interface import Loaded
from llmlb.node.store.catalog import StoredModel

LONGEST_MS = 30 * 24 * 3600 * 1000
"""A deadline that is further away is none."""


@dataclass(slots=True)
class Flight:
    """What the agent knows of it."""

    handle: int
    request_id: str
    attempt: int
    reply: str
    model: StoredModel
    data: bytes
    bulk: BulkInferRequest | None = None
    """Where ``data`` is to be fetched."""
    seq: int = 0
    loaded: Loaded | None = None
    waiting: asyncio.Task[None] | None = None
    cancelled: bool = False
    deadline: asyncio.TimerHandle | None = None
    """Ends it, where the request says how long it may take."""

    def set_clock(self, milliseconds: int, late: Callable[[], object]) -> None:
        """Call ``late`` then, unless it is over before."""
        self.deadline = asyncio.get_running_loop().call_later(min(milliseconds, LONGEST_MS) / 1000, late)

    def stop_clock(self) -> None:
        """It is over: the deadline must not come any more."""
        if self.deadline is not None:
            self.deadline.cancel()


def answer_too_large(size: int, most: int, error: MessageTooLarge) -> InvalidRequest:
    """For a reply of ``size`` bytes on a bus that takes ``most``: no other node could send it either."""
    return InvalidRequest(
        f"the answer of {size} bytes is larger than a message of the bus, {most} bytes: ask for less at once",
        detail=error.detail,
    )
