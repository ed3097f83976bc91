"""Send a request to a node and bring its answer back: the only place that decides about another try.

A failure that is the node's, and not the request's, is made good on another node, as often as ATTEMPTS_MAX allows:
before the first token by asking anew, after it by *migration*: the next node is given the ids of the tokens that the
client has and goes on behind them, so that the client sees one answer. Silence longer than the stall limit and a gap
in the numbering are failures, never a short answer. What can't be made good ends in one typed error.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from llmlb.bus import subjects
from llmlb.bus.bulk import Bulk
from llmlb.bus.connection import Bus
from llmlb.bus.errors import (
    BusDown,
    BusError,
    EngineStalled,
    LlmlbError,
    ModelUnknown,
    NodeBusy,
    NodeError,
    OutOfMemory,
    QueueFull,
    RequestError,
)
from llmlb.bus.messages.infer import CancelRequest, Delta, Embedded, End, Failed, InferRequest, Progress
from llmlb.bus.tasks import Background
from llmlb.router.asking import Asking
from llmlb.router.call import Call
from llmlb.router.fleet import Fleet
from llmlb.router.gate import Gate, Place
from llmlb.router.inbox import Inbox, Interrupted, Nobody, Reply
from llmlb.router.journey import Attempt, Journey
from llmlb.router.lookout import Lookout
from llmlb.router.metrics import Metrics
from llmlb.router.node_errors import by_node, unexpected
from llmlb.router.prober import Prober
from llmlb.router.proofs import Proofs
from llmlb.router.recorder import Recorder
from llmlb.router.replies import Replies

log = logging.getLogger("llmlb.router.dispatch")

ATTEMPTS_MAX = 4
"""Failures of nodes that one request may meet; the one after it ends the request."""
CRASHES_MAX = 2
"""Engines that may crash on one request: it may be the cause, and must not take every node down."""
SETTLE_S = 5.0
"""After the bus came back, nodes may still be on their way back to it; after a failure, the one that is left may be
tried by somebody else just now. So long a request under way waits for a node that it can go on with."""
SETTLE_POLL_S = 0.1
WAITING_PROGRESS_S = 1.0
"""Between two signs of life of a request that waits for a slot."""

Event = Progress | Delta | Embedded | End

# Worth another node. ModelUnknown: the node's list was older than its disk. OutOfMemory: another one may have more.
_RETRY: tuple[type[LlmlbError], ...] = (NodeError, NodeBusy, ModelUnknown, OutOfMemory)


_subject = functools.lru_cache(4096)(subjects.infer)


@dataclass(slots=True, kw_only=True)
class _Attempt(Attempt):
    """An attempt under way."""

    stream: str
    inbox: Inbox
    number: int = 0
    over: bool = False
    """The node brought it to an end, be it a failure: there is nothing to cancel there."""


class Dispatcher:
    """Inference for one gateway process, over one wildcard subscription for all replies."""

    def __init__(self, bus: Bus, fleet: Fleet, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics()
        self._bus = bus
        self._fleet = fleet
        self._loads = fleet.loads
        self._stall_s = bus.settings.stall_timeout_s
        self.gate = Gate(fleet.loads, most=bus.settings.queue_max, timeout_s=bus.settings.queue_timeout_s)
        self._replies = Replies(bus, self._node_gone)
        self.gateway_id = self._replies.gateway_id
        self.prober = Prober(bus, self.gateway_id, fleet.unheard)
        self._proofs = Proofs(fleet.loads)
        self._recorder = Recorder(bus)
        self._bulk = Bulk(bus)
        self._asking = Asking(fleet.loads, self.gate)
        self._lookout = Lookout(self._look)
        self._background = Background("dispatch")
        self._open = False
        self._back_at = -math.inf
        """When the bus came back last."""

    async def start(self) -> None:
        """Begin to listen for replies; returns when the bus is up."""
        await self._bus.wait_up()
        await self._replies.start()
        self._bus.on_up(self._bus_is_back)
        self._recorder.start()
        self._background.forever(self._lookout.run, "tick")
        self._open = True

    async def close(self) -> None:
        """Send the last records. Never raises."""
        await self._background.close()
        await self._recorder.close()
        await self._bulk.close()

    def _look(self, now: float) -> None:
        self._replies.look(now, self._stall_s)
        if self._bus.connected:
            self.prober.look(now)
        self._proofs.tick(now)
        self._loads.tick()
        self.gate.tick()

    async def _bus_is_back(self) -> None:
        """What was under way may have lost replies meanwhile: it is gone on with from what is here."""
        self._back_at = time.monotonic()
        self._replies.fail_all(lambda: Interrupted("the bus was away"))

    def _node_gone(self, node_id: str) -> None:
        self._fleet.lost(node_id)
        self.prober.gone(node_id)

    def end_of(self, key: str, error: Callable[[], LlmlbError]) -> None:
        """All requests of a key or user fail with this, at once."""
        self._replies.fail_of(key, error)
        self.gate.end_of(key, error)

    def prompts_compared(self, model: str) -> bool:
        """Whether the texts of a request for this model will be looked at, to find who computed its beginning."""
        return self._loads.several(model)

    # One request

    async def stream(self, request: InferRequest, call: Call | None = None) -> AsyncGenerator[Event, None]:
        """The answer to a request: progress, deltas, one end.

        Raises LlmlbError, from the first step or any later one. Closing the generator, or cancelling the task that
        reads it, frees the slot on the node or the place in the queue. One generator for all of it: each further
        layer costs 10 µs a request.
        """
        journey = Journey(request, call or Call(), self.gateway_id)
        self.metrics.request_began(request.model)
        self._lookout.began()
        try:
            if not (self._open and self._bus.connected and self._loads.has(request.model)):
                await self._check(journey)
            while True:
                place = await self._again(journey) if journey.attempts else self._first(journey)
                if place is None:
                    async with contextlib.aclosing(self._wait(journey)) as waiting:
                        async for progress in waiting:
                            yield progress
                    place = journey.place
                attempt = self._begin(journey, place)
                try:
                    await self._send(journey, attempt)
                    while not attempt.over:
                        event = self._take(journey, attempt, await attempt.inbox.get())
                        if event is not None:
                            yield event
                    return
                except _RETRY as error:
                    failure = self._broken(attempt, error)
                finally:
                    self._ended(attempt)
                    if not attempt.over:
                        await self._cancel(journey, attempt)
                self._after(journey, attempt, failure)
        except Exception as error:  # whatever it is, it is raised again: the record says that it was an error
            journey.status = "error"
            journey.failure = error if isinstance(error, LlmlbError) else unexpected(error)
            raise
        finally:
            self._finished(journey)

    async def _check(self, journey: Journey) -> None:
        """Raises what a request gets for which there is no node at all."""
        if not self._open or not self._bus.connected:
            raise BusDown("the bus is not reachable at the moment")
        if not self._loads.has(journey.request.model):
            try:
                await self._fleet.check(journey.request.model)
            except ModelUnknown:
                journey.unheard_of = True
                raise

    def _finished(self, journey: Journey) -> None:
        self._lookout.ended()
        record = journey.record()
        self.metrics.request_ended(record)
        if not journey.unheard_of:
            self._recorder.put(record)

    # Places

    def _first(self, journey: Journey) -> Place | None:
        """The first place of a request; None: it has to wait. Raises NoCapableNode, ModelUnknown …"""
        model = journey.request.model
        place = self.gate.now(model, self._asking.ask(journey))
        if place is not None:
            journey.placed_at = time.monotonic()
        elif not self._loads.hopeful(model):
            self._fleet.explain(model)
        return place

    async def _wait(self, journey: Journey) -> AsyncGenerator[Progress, None]:
        """A turn in the queue, with a sign of life each second; then ``journey.place`` is set.

        Raises QueueFull, DeadlineExceeded, NoCapableNode.
        """
        model = journey.request.model
        ticket = self.gate.join(model, journey.call.key, self._asking.ask(journey))
        journey.forget_texts()
        self.metrics.waiting(model, 1)
        place: Place | None = None
        try:
            while not (await asyncio.wait([ticket.turn], timeout=WAITING_PROGRESS_S))[0]:
                position, wait_s = self.gate.position(ticket)
                yield Progress(
                    request_id=journey.request.request_id,
                    seq=0,
                    phase="queued",
                    done=position,
                    total=self.gate.waiting(model),
                    wait_s=wait_s,
                )
            place = self.gate.taken(ticket)
        finally:
            self.metrics.waiting(model, -1)
            if place is None:
                self.gate.leave(ticket)
        journey.placed_at = time.monotonic()
        journey.place = place

    async def _again(self, journey: Journey) -> Place | None:
        """A place for what failed elsewhere: at once, even where it has to wait.

        None: it waits for a turn like everybody else. Raises the failure when there is no other node.
        """
        failure = journey.failure
        assert failure is not None
        place = await self._anyhow(journey)
        if place is not None:
            if journey.begun:
                journey.migrations += 1
                self.metrics.migrated(failure.reason)
            return place
        if isinstance(failure, NodeBusy) and not journey.begun:
            # Every node is full, though it did not look so.
            journey.exclude.clear()
            return None
        raise failure

    async def _anyhow(self, journey: Journey) -> Place | None:
        """A node for what failed elsewhere, waited for up to SETTLE_S; None: there is none. Raises BusDown."""
        model, until = journey.request.model, time.monotonic() + SETTLE_S
        while True:
            if not self._bus.connected:
                raise BusDown("the bus went away during the answer") from journey.failure
            place = self.gate.anyhow(model, self._asking.ask(journey))
            hope = self._settling() or (
                time.monotonic() < until and self._loads.hopeful(model, exclude=journey.exclude)
            )
            if place is not None or not hope:
                return place
            await asyncio.sleep(SETTLE_POLL_S)

    def _settling(self) -> bool:
        return time.monotonic() - self._back_at < SETTLE_S

    def _after(self, journey: Journey, attempt: Attempt, error: LlmlbError) -> None:
        """Take note of a failure. Raises it when there must not be another attempt."""
        journey.failed(error)
        after_s = time.monotonic() - attempt.began
        self.metrics.attempt_failed(error.reason)
        log.warning(
            "attempt_failed request=%s node=%s attempt=%d tokens=%d reason=%s error=%r detail=%s",
            journey.request.request_id,
            attempt.node_id[:12],
            len(journey.attempts),
            attempt.tokens,
            error.reason,
            error.message,
            error.detail,
        )
        if isinstance(error, NodeBusy):
            self._loads.busy(attempt.node_id, attempt.name)
            journey.exclude.add(attempt.node_id)
        elif isinstance(error, Interrupted):
            journey.failures += 1
        elif isinstance(error, Nobody) and self._settling():
            pass  # not back on the bus yet: it gets no work until it is heard, and is not to blame
        else:
            journey.failures += 1
            journey.exclude.add(attempt.node_id)
            if isinstance(error, EngineStalled) and not self._bus.connected:
                raise BusDown("the bus went away and did not come back in time") from error
            if not isinstance(error, ModelUnknown):
                self._loads.failed(attempt.node_id, attempt.name, after_s)
        if (
            journey.call.no_retry
            or not journey.exact
            or journey.failures >= ATTEMPTS_MAX
            or journey.crashes >= CRASHES_MAX
            or len(journey.attempts) >= 4 * ATTEMPTS_MAX
        ):
            raise self._final(error)

    def _final(self, error: LlmlbError) -> LlmlbError:
        if isinstance(error, NodeBusy):
            full = QueueFull("every slot is taken and the waiting places are full; try again shortly")
            full.retry_after_s = self.gate.queue.retry_after_s()
            return full
        return error

    # One attempt

    def _begin(self, journey: Journey, place: Place | None) -> _Attempt:
        """A new attempt at this place, which is counted there until :meth:`_ended`."""
        assert place is not None
        placement, name = place
        stream, inbox = self._replies.open(journey.call.key)
        if journey.call.direct is not None:
            inbox.direct = journey.straight
        attempt = _Attempt(placement.node_id, name, placement.reason, time.monotonic(), stream=stream, inbox=inbox)
        self.prober.watch(attempt.node_id, inbox)
        self._proofs.began(attempt)
        return attempt

    async def _send(self, journey: Journey, attempt: _Attempt) -> None:
        """Raises BusDown, MessageTooLarge."""
        sent = journey.next_request(attempt.name)
        attempt.number = sent.attempt
        journey.attempts.append(attempt)
        reply = self._replies.subject(attempt.stream)
        await self._bulk.publish(_subject(attempt.node_id), sent, reply=reply)
        journey.forget_texts()
        attempt.inbox.heard_at = time.monotonic()  # a large one takes its time

    def _take(self, journey: Journey, attempt: _Attempt, event: Reply) -> Event | None:
        """The next reply; None: nothing that the client needs. Raises what the node failed with."""
        if isinstance(event, Failed):
            attempt.over = True
            error = event.error.exception()
            if isinstance(error, RequestError):
                self._loads.succeeded(attempt.node_id, attempt.name)  # the request is at fault, and the node works
            raise by_node(error, timed=journey.request.deadline_ms is not None)
        if isinstance(event, End):
            attempt.over = True
            self._succeeded(journey, attempt, event)
        elif not isinstance(event, Progress) and not journey.deliver(event):
            return None
        return event

    def _broken(self, attempt: _Attempt, error: LlmlbError) -> LlmlbError:
        if isinstance(error, Nobody):
            self._fleet.lost(attempt.node_id)
        return error

    def _ended(self, attempt: _Attempt) -> None:
        if self._bulk.pending:
            self._bulk.ended(self._replies.subject(attempt.stream))
        self._replies.close(attempt.stream)
        attempt.inbox.direct = None  # the journey has its attempts: a circle that only the collector would undo
        self.prober.unwatch(attempt.node_id, attempt.inbox)
        self._proofs.ended(attempt)
        # A breaker's probe that brought neither success nor failure, which is told after this: the next one is it.
        self._loads.abandoned(attempt.node_id, attempt.name, attempt.began)
        self._loads.ended(attempt.node_id, attempt.name)

    async def _cancel(self, journey: Journey, attempt: _Attempt) -> None:
        """Free the slot on the node of an attempt that did not come to its end."""
        cancel = CancelRequest(request_id=journey.request.request_id, attempt=attempt.number)
        with contextlib.suppress(BusError):
            await self._bus.publish(subjects.cancel(attempt.node_id), cancel)

    def _succeeded(self, journey: Journey, attempt: Attempt, end: End) -> None:
        journey.deliver(end)
        attempt.ended = time.monotonic()
        self._loads.succeeded(attempt.node_id, attempt.name)
        if journey.request.count_only:
            return  # it says nothing about answers, and nobody's cache holds its prompt
        model = journey.request.model
        self._loads.finished(model, end.usage.prompt_tokens, end.usage.completion_tokens)
        self._asking.answered(journey, attempt.node_id, attempt.ended)

    def waiting(self) -> tuple[int, float]:
        """(requests in this gateway's queue, seconds that the first of them has waited)."""
        queue = self.gate.queue
        return queue.waiting(), queue.longest_wait_s(time.monotonic())
