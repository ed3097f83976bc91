"""Send a request to a node and bring its answer back: the only place that decides about another try.

A failure that is the node's, and not the request's, is made good on another node, as often as ATTEMPTS_MAX allows:
before the first token by asking anew, after it by *migration*: the next node is given the ids of the tokens that the
client has and goes on behind them, so that the client sees one answer. Silence longer than the stall limit and a gap
in the numbering are failures, never a short answer. What can't be made good ends in one typed error.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator

from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import (
    BusDown,
    BusError,
    EngineStalled,
    LlmlbError,
    ModelUnknown,
    NodeBusy,
    NodeError,
    NodeLost,
    OutOfMemory,
    QueueFull,
    RequestError,
)
from llmlb.bus.messages.infer import CancelRequest, Delta, Embedded, End, Failed, InferRequest, Progress
from llmlb.bus.tasks import Background
from llmlb.router.affinity import PrefixMap, estimate_tokens
from llmlb.router.call import Call
from llmlb.router.fleet import Fleet
from llmlb.router.gate import Gate, Place
from llmlb.router.inbox import Inbox, Interrupted, Nobody
from llmlb.router.journey import Attempt, Journey
from llmlb.router.metrics import Metrics
from llmlb.router.placement import Ask
from llmlb.router.prober import MARK, Prober
from llmlb.router.proofs import Proofs
from llmlb.router.recorder import Recorder

log = logging.getLogger("llmlb.router.dispatch")

ATTEMPTS_MAX = 4
"""Failures of nodes that one request may meet; the one after it ends the request."""
CRASHES_MAX = 2
"""Engines that may crash on one request: it may be the cause, and must not take every node down."""
ACCEPT_TIMEOUT_S = 5.0
"""A node that lives answers ``accepted`` at once, before any work."""
TICK_S = 0.25
SETTLE_S = 5.0
"""After the bus came back, nodes may still be on their way back to it; after a failure, the one that is left may be
tried by somebody else just now. So long a request under way waits for a node that it can go on with."""
SETTLE_POLL_S = 0.1
WAITING_PROGRESS_S = 1.0
"""Between two signs of life of a request that waits for a slot."""

Event = Progress | Delta | Embedded | End

# Worth another node. ModelUnknown: the node's list was older than its disk. OutOfMemory: another one may have more.
_RETRY: tuple[type[LlmlbError], ...] = (NodeError, NodeBusy, ModelUnknown, OutOfMemory)


class Dispatcher:
    """Inference for one gateway process, over one wildcard subscription for all replies."""

    def __init__(self, bus: Bus, fleet: Fleet, metrics: Metrics | None = None) -> None:
        self.gateway_id = uuid.uuid4().hex
        self.metrics = metrics or Metrics()
        self._bus = bus
        self._fleet = fleet
        self._loads = fleet.loads
        settings = bus.settings
        self._stall_s = settings.stall_timeout_s
        self.gate = Gate(fleet.loads, most=settings.queue_max, timeout_s=settings.queue_timeout_s)
        self._prober = Prober(bus, self.gateway_id, fleet.unheard)
        self._proofs = Proofs(fleet.loads)
        self._recorder = Recorder(bus)
        self._prefixes = PrefixMap()
        fleet.loads.on_cold = self._prefixes.forget_node
        self._inboxes: dict[str, Inbox] = {}
        self._numbers = itertools.count()
        self._background = Background("dispatch")
        self._open = False
        self._back_at = -math.inf
        """When the bus came back last."""

    async def start(self) -> None:
        """Begin to listen for replies; returns when the bus is up."""
        await self._bus.wait_up()
        await self._bus.subscribe_straight(subjects.all_replies(self.gateway_id), self._on_reply)
        self._bus.on_up(self._bus_is_back)
        self._prober.start()
        self._recorder.start()
        self._background.start(self._tick(), "tick")
        self._open = True

    async def close(self) -> None:
        """Send the last records. Never raises."""
        await self._background.close()
        await self._prober.close()
        await self._recorder.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._proofs.tick(time.monotonic())
            self._loads.tick()
            self.gate.tick()

    async def _bus_is_back(self) -> None:
        """What was under way may have lost replies meanwhile: it is gone on with from what is here."""
        self._back_at = time.monotonic()
        for inbox in list(self._inboxes.values()):
            inbox.fail(Interrupted("the bus was away"))

    def _on_reply(self, msg: Msg) -> None:
        stream = subjects.reply_stream(msg.subject)
        if not msg.data:
            if msg.headers and msg.headers.get("Status") == "503":
                self._nobody(stream)
            return
        inbox = self._inboxes.get(stream)
        if inbox is None:
            return  # of a request that is over
        try:
            inbox.put(codec.decode_reply(msg.data))
        except BusError as error:
            inbox.fail(NodeLost("an answer that can't be read", detail=error.detail))

    def _nobody(self, stream: str) -> None:
        """The bus says that nobody listens where a request or a probe went."""
        if stream.startswith(MARK):
            node_id = stream[len(MARK) :]
            self._fleet.lost(node_id)
            self._prober.gone(node_id)
        elif (inbox := self._inboxes.get(stream)) is not None:
            inbox.fail(Nobody("nobody answers for the node"))

    # One request

    async def stream(self, request: InferRequest, call: Call | None = None) -> AsyncGenerator[Event, None]:
        """The answer to a request: progress, deltas, one end.

        Raises LlmlbError, from the first step or any later one. Closing the generator, or cancelling the task that
        reads it, frees the slot on the node or the place in the queue.
        """
        if not self._open or not self._bus.connected:
            raise BusDown("the bus is not reachable at the moment")
        await self._fleet.check(request.model)
        journey = Journey(request, call or Call(), self.gateway_id)
        self.metrics.request_began(request.model)
        try:
            async with contextlib.aclosing(self._run(journey)) as events:
                async for event in events:
                    yield event
        except LlmlbError as error:
            journey.status, journey.failure = "error", error
            raise
        finally:
            record = journey.record()
            self.metrics.request_ended(record)
            self._recorder.put(record)

    async def _run(self, journey: Journey) -> AsyncGenerator[Event, None]:
        """Attempt after attempt, until one brings the end or no further one is allowed."""
        places = self._admit(journey)
        while True:
            async with contextlib.aclosing(places) as waiting:
                async for got in waiting:
                    if isinstance(got, Progress):
                        yield got
                    else:
                        placement, name = got
            attempt = Attempt(placement.node_id, name, placement.reason, time.monotonic())
            try:
                async with contextlib.aclosing(self._attempt(journey, attempt)) as events:
                    async for event in events:
                        yield event
                return
            except _RETRY as error:
                self._after(journey, attempt, error)
            places = self._again(journey)

    # Places

    def _ask(self, journey: Journey) -> Ask:
        request = journey.request
        warm: dict[str, int] = {}
        if request.kind != "embedding" and self._loads.several(request.model):
            found = self._prefixes.lookup(request.model, journey.prompt_parts())
            warm = {node_id: estimate_tokens(characters) for node_id, characters in found.items()}
        return Ask(
            prompt_tokens=estimate_tokens(journey.characters()) + len(journey.tokens),
            max_tokens=request.sampling.max_tokens or 0,
            warm=warm,
            exclude=frozenset(journey.exclude),
            queued=self.gate.queue.waiting(request.model),
        )

    async def _admit(self, journey: Journey) -> AsyncGenerator[Progress | Place, None]:
        """The first place of a request: now, or when its turn comes. Raises QueueFull, DeadlineExceeded …"""
        ask = self._ask(journey)
        model = journey.request.model
        place = self.gate.now(model, ask)
        if place is None:
            if not self._loads.hopeful(model):
                self._fleet.explain(model)
            async with contextlib.aclosing(self._wait(journey, ask)) as waiting:
                async for got in waiting:
                    yield got
        else:
            journey.placed_at = time.monotonic()
            yield place

    async def _wait(self, journey: Journey, ask: Ask) -> AsyncGenerator[Progress | Place, None]:
        """A turn in the queue, with a sign of life each second."""
        model = journey.request.model
        ticket = self.gate.join(model, journey.call.key, ask)
        self.metrics.waiting(model, 1)
        place: Place | None = None
        try:
            while not (await asyncio.wait([ticket.turn], timeout=WAITING_PROGRESS_S))[0]:
                position, wait_s = self.gate.position(ticket)
                total = self.gate.queue.waiting(model)
                yield Progress(
                    request_id=journey.request.request_id,
                    seq=0,
                    phase="queued",
                    done=position,
                    total=total,
                    wait_s=wait_s,
                )
            place = self.gate.taken(ticket)
        finally:
            self.metrics.waiting(model, -1)
            if place is None:
                self.gate.leave(ticket)
        journey.placed_at = time.monotonic()
        yield place

    async def _again(self, journey: Journey) -> AsyncGenerator[Progress | Place, None]:
        """A place for what failed elsewhere: at once, even where it has to wait. Raises the failure without one."""
        failure = journey.failure
        assert failure is not None
        place = await self._anyhow(journey)
        if place is not None:
            if journey.begun:
                journey.migrations += 1
                self.metrics.migrated(failure.reason)
            yield place
            return
        if isinstance(failure, NodeBusy) and not journey.begun:
            # Every node is full, though it did not look so: wait for a turn like everybody else.
            journey.exclude.clear()
            async with contextlib.aclosing(self._wait(journey, self._ask(journey))) as waiting:
                async for got in waiting:
                    yield got
            return
        raise failure

    async def _anyhow(self, journey: Journey) -> Place | None:
        """A node for what failed elsewhere, waited for up to SETTLE_S; None: there is none. Raises BusDown."""
        model, until = journey.request.model, time.monotonic() + SETTLE_S
        while True:
            if not self._bus.connected:
                raise BusDown("the bus went away during the answer") from journey.failure
            place = self.gate.anyhow(model, self._ask(journey))
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

    @staticmethod
    def _final(error: LlmlbError) -> LlmlbError:
        if isinstance(error, NodeBusy):
            return QueueFull("every slot is taken and the waiting places are full; try again shortly")
        return error

    # One attempt

    async def _attempt(self, journey: Journey, attempt: Attempt) -> AsyncGenerator[Event, None]:
        """One node's answer. Cancels on the node what did not come to its end."""
        node_id, name = attempt.node_id, attempt.name
        sent = journey.next_request(name)
        journey.attempts.append(attempt)
        stream = str(next(self._numbers))
        inbox = self._inboxes[stream] = Inbox()
        if journey.call.direct is not None:
            inbox.direct = journey.straight
        self._prober.watch(node_id, inbox)
        self._proofs.began(attempt)
        over = False
        try:
            await self._bus.publish(subjects.infer(node_id), sent, reply=subjects.reply(self.gateway_id, stream))
            try:
                reply = await inbox.get(ACCEPT_TIMEOUT_S)
            except EngineStalled:
                raise NodeLost(f"the node did not accept the request within {ACCEPT_TIMEOUT_S:.0f} s") from None
            while True:
                if isinstance(reply, Delta | Embedded):
                    if journey.deliver(reply):
                        yield reply
                elif isinstance(reply, End):
                    over = True
                    self._succeeded(journey, attempt, reply)
                    yield reply
                    return
                elif isinstance(reply, Failed):
                    over = True
                    raise reply.error.exception()
                elif isinstance(reply, Progress):
                    yield reply
                reply = await inbox.get(self._stall_s)
        except Nobody:
            self._fleet.lost(node_id)
            raise
        except RequestError:
            self._loads.succeeded(node_id, name)  # the request is at fault, and the node works
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._loads.abandoned(node_id, name, attempt.began)
            raise
        finally:
            del self._inboxes[stream]
            self._prober.unwatch(node_id, inbox)
            self._proofs.ended(attempt)
            self._loads.ended(node_id, name)
            if not over:
                cancel = CancelRequest(request_id=sent.request_id, attempt=sent.attempt)
                with contextlib.suppress(BusError):
                    await self._bus.publish(subjects.cancel(node_id), cancel)

    def _succeeded(self, journey: Journey, attempt: Attempt, end: End) -> None:
        journey.deliver(end)
        attempt.ended = time.monotonic()
        self._loads.succeeded(attempt.node_id, attempt.name)
        if journey.request.count_only:
            return  # it says nothing about answers, and nobody's cache holds its prompt
        model = journey.request.model
        self._loads.finished(model, end.usage.prompt_tokens, end.usage.completion_tokens)
        if journey.request.kind != "embedding" and self._loads.several(model):
            self._prefixes.remember(model, journey.prompt_parts(), attempt.node_id, attempt.ended)

    def waiting(self) -> tuple[int, float]:
        """(requests in this gateway's queue, seconds that the first of them has waited)."""
        queue = self.gate.queue
        return queue.waiting(), queue.longest_wait_s(time.monotonic())
