"""Send a request to a node and bring its answer back: the only place that decides about another try.

Before the first text has gone out, a failure that is the node's is tried on another node; what the request itself is
at fault for is not. After it, a failure ends the stream with one typed error. Silence longer than the stall limit and
a gap in the numbering are failures, never a short answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator
from typing import Literal

from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import (
    BusDown,
    BusError,
    CapacityError,
    EngineStalled,
    LlmlbError,
    ModelUnknown,
    NodeBusy,
    NodeError,
    NodeLost,
    QueueFull,
)
from llmlb.bus.messages.infer import Accepted, CancelRequest, Delta, Embedded, End, Failed, InferRequest, Progress
from llmlb.bus.messages.requests import RequestRecord
from llmlb.router.fleet import Fleet

log = logging.getLogger("llmlb.router.dispatch")

MAX_ATTEMPTS = 3
ACCEPT_TIMEOUT_S = 5.0
"""A node that lives answers ``accepted`` at once, before any work."""
CHUNKS_MAX = 100_000
"""Replies one stream may hold for a reader that does not read; more is a failure of the request."""

Event = Progress | Delta | Embedded | End
Reply = Accepted | Progress | Delta | Embedded | End | Failed

# Worth another node, as long as the client has seen nothing. ModelUnknown: the node's list was older than its disk.
_RETRY: tuple[type[LlmlbError], ...] = (NodeError, NodeBusy, ModelUnknown)


class _Inbox:
    """The replies to one attempt, in order, checked for gaps."""

    __slots__ = ("_arrived", "_items", "_next_seq")

    def __init__(self) -> None:
        self._items: deque[Reply | LlmlbError] = deque()
        self._arrived = asyncio.Event()
        self._next_seq = 0

    def put(self, item: Reply | LlmlbError) -> None:
        if not isinstance(item, LlmlbError):
            if item.seq != self._next_seq:
                item = NodeLost(f"a gap in the answer: number {item.seq} after {self._next_seq - 1}")
            elif len(self._items) >= CHUNKS_MAX:
                item = NodeLost("the answer was not read in time")
            self._next_seq += 1
        self._items.append(item)
        self._arrived.set()

    async def get(self, timeout_s: float) -> Reply:
        """The next reply. Raises EngineStalled after ``timeout_s`` of silence, or what was put in."""
        if not self._items:
            self._arrived.clear()
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with a reply.
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                raise EngineStalled(f"no sign of life from the node for {timeout_s:.0f} s") from None
        item = self._items.popleft()
        if isinstance(item, LlmlbError):
            raise item
        return item


class Dispatcher:
    """Inference for one gateway process, over one wildcard subscription for all replies."""

    def __init__(self, bus: Bus, fleet: Fleet) -> None:
        self._bus = bus
        self._fleet = fleet
        self._stall_s = bus.settings.stall_timeout_s
        self._gateway_id = uuid.uuid4().hex
        self._inboxes: dict[str, _Inbox] = {}
        self._numbers = itertools.count()
        self._open = False

    async def start(self) -> None:
        """Begin to listen for replies; returns when the bus is up."""
        await self._bus.wait_up()
        await self._bus.subscribe(subjects.all_replies(self._gateway_id), self._on_reply)
        self._open = True

    async def _on_reply(self, msg: Msg) -> None:
        inbox = self._inboxes.get(subjects.reply_stream(msg.subject))
        if inbox is None:
            return  # of a request that is over
        if not msg.data and msg.headers and msg.headers.get("Status") == "503":
            inbox.put(NodeLost("nobody answers for the node"))
            return
        try:
            inbox.put(codec.decode_reply(msg.data))
        except BusError as error:
            inbox.put(NodeLost("an answer that can't be read", detail=error.detail))

    async def stream(self, request: InferRequest) -> AsyncGenerator[Event, None]:
        """The answer to a request: progress, deltas, one end.

        Raises LlmlbError, from the first step or any later one. Closing the generator, or cancelling the task that
        reads it, frees the slot on the node.
        """
        if not self._open or not self._bus.connected:
            raise BusDown("the bus is not reachable at the moment")
        began = time.monotonic()
        first_token: float | None = None
        tried: frozenset[str] = frozenset()
        status: Literal["ok", "error", "cancelled"] = "cancelled"
        failure: LlmlbError | None = None
        end: End | None = None
        node_id, why = "", ""
        try:
            while True:
                placement, name = self._next_node(request.model, tried, failure)
                node_id, why = placement.node_id, placement.reason
                tried |= {node_id}
                sent = request.model_copy(update={"model": name, "attempt": len(tried) - 1})
                try:
                    async with contextlib.aclosing(self._attempt(node_id, sent)) as replies:
                        async for reply in replies:
                            if isinstance(reply, Delta | Embedded):
                                first_token = first_token or time.monotonic()
                            elif isinstance(reply, End):
                                end, status = reply, "ok"
                            yield reply
                    return
                except _RETRY as error:
                    failure = error
                    log.warning(
                        "attempt_failed request=%s node=%s attempt=%d reason=%s error=%r detail=%s",
                        request.request_id,
                        node_id[:12],
                        len(tried),
                        error.reason,
                        error.message,
                        error.detail,
                    )
                    if first_token is not None or len(tried) >= MAX_ATTEMPTS:
                        raise
        except LlmlbError as error:
            status, failure = "error", error
            raise
        finally:
            if node_id:
                now = time.monotonic()
                record = RequestRecord(
                    request_id=request.request_id,
                    model=request.model,
                    node_id=node_id,
                    attempts=len(tried),
                    placement=why,
                    status=status,
                    reason=failure.reason if failure is not None and status == "error" else None,
                    finish_reason=None if end is None else end.finish_reason,
                    usage=None if end is None else end.usage,
                    timings=None if end is None else end.timings,
                    first_token_ms=None if first_token is None else (first_token - began) * 1000,
                    total_ms=(now - began) * 1000,
                )
                with contextlib.suppress(BusError):
                    await self._bus.publish(subjects.request_record(node_id), record)

    def _next_node(self, model: str, tried: frozenset[str], failure: LlmlbError | None):  # type: ignore[no-untyped-def]
        try:
            return self._fleet.place(model, tried)
        except CapacityError:
            # Every node was tried: what the last one said is the better answer.
            if isinstance(failure, NodeBusy):
                raise QueueFull("every slot is taken and the waiting places are full; try again shortly") from failure
            if failure is not None:
                raise failure from None
            raise

    async def _attempt(self, node_id: str, request: InferRequest) -> AsyncGenerator[Event, None]:
        """One node's answer. Cancels on the node what did not come to its end."""
        stream = str(next(self._numbers))
        inbox = self._inboxes[stream] = _Inbox()
        self._fleet.started(node_id)
        over = False
        try:
            await self._bus.publish(subjects.infer(node_id), request, reply=subjects.reply(self._gateway_id, stream))
            try:
                reply = await inbox.get(ACCEPT_TIMEOUT_S)
            except EngineStalled:
                raise NodeLost(f"the node did not accept the request within {ACCEPT_TIMEOUT_S:.0f} s") from None
            while True:
                if isinstance(reply, Failed):
                    over = True
                    raise reply.error.exception()
                if isinstance(reply, End):
                    over = True
                    yield reply
                    return
                if not isinstance(reply, Accepted):
                    yield reply
                reply = await inbox.get(self._stall_s)
        except NodeLost:
            self._fleet.lost(node_id)
            raise
        finally:
            del self._inboxes[stream]
            self._fleet.ended(node_id)
            if not over:
                with contextlib.suppress(BusError):
                    await self._bus.publish(subjects.cancel(node_id), CancelRequest(request_id=request.request_id))
