"""The simulated engine: scripted tokens at a given rate, with faults on demand; hundreds of nodes fit into one process.

For the cluster's tests and benchmarks. It serves only models whose names begin with ``simulated/``, and no worker ever
makes it, so that no real model name can reach it: a node has it when it is started with :func:`simulated_pool`.

Everything that the agent sees (holding a model, keep-alive, busy, unloading, crashes) is the real pool's own code; what
stands in for the worker process is :class:`SimulatedProcess`, and one task (:class:`Timer`) drives all of them.

An answer is a pure function of its prompt and seed. Token ``k`` is a number below VOCABULARY, and its text is made of
that number, so a continuation on another node goes on with exactly the same text. A continuation that does not belong
to the answer is refused: a router that hands over the wrong tokens is found out. Not simulated: tool calls, response
formats, thinking, log probabilities, prefix reuse.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from llmlb.bus.errors import (
    ContextOverflow,
    EngineCrashed,
    InvalidRequest,
    NodeBusy,
)
from llmlb.bus.messages.infer import (
    FinishReason,
    InferRequest,
    Timings,
    Usage,
)
from llmlb.node.engine.interface import Capabilities, Handle, Piece, Sink
from llmlb.node.engine.simulated_script import Script, prompt_text, size_of, token_text, vector
from llmlb.node.engine.streamer import TextStreamer

log = logging.getLogger("llmlb.node.engine.simulated")

PREFIX = "simulated/"
"""Every name of a simulated model begins so."""
PROGRESS_S = 0.5
"""Between two signs of life of a request that gets no tokens; as ``llama_cpp.py`` has it."""
GRAIN_S = 0.002
"""Work is done at multiples of this: streams that are due at about the same time share one waking of the timer."""
TURN = 32
"""Processes the timer serves before it lets the rest of the loop run."""

FaultKind = Literal["none", "crash", "hang", "gap", "slow_first_token", "load_failure", "busy"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of a script of faults, for ``times`` requests one after the other (None: for ever).

    - ``none``: the request goes well; for what lies between faults.
    - ``crash``: the engine dies. Everything on it fails with EngineCrashed; the next request loads the model again.
    - ``hang``: not a word more of this request; its slot stays taken until it is cancelled.
    - ``gap``: one number of the stream is left out, and the answer goes on.
    - ``slow_first_token``: the first token takes ``seconds`` more, with progress meanwhile.
    - ``busy``: refused with NodeBusy.
    - ``load_failure``: counts loads and not requests. The load ends with ModelLoadFailed, after ``load_s``.

    ``after_tokens``, for crash, hang and gap: tokens (vectors, of an embedding) this node gives out before; when the
    answer has just as many, the fault comes in place of the end, and when it has fewer there is none. A request takes
    its entry when it arrives, so the same requests in the same order meet the same faults.
    """

    kind: FaultKind
    after_tokens: int = 0
    times: int | None = 1
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.after_tokens < 0 or self.seconds < 0 or (self.times is not None and self.times < 1):
            raise ValueError(f"not a fault that can happen: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSpec:
    """How fast a simulated node is, and what goes wrong there. ``math.inf`` is a speed."""

    tokens_per_s: float = 50.0
    """Of each slot, however many are busy."""
    first_token_delay_s: float = 0.0
    """From slot to first token, beside the prefill."""
    prefill_tokens_per_s: float = math.inf
    """Of prompt and continuation, each slot by itself."""
    load_s: float = 0.0
    slots: int = 4
    context_length: int = 4096
    answer_tokens: int = 32
    """Length of an answer that ends by itself; max_tokens and the context may cut it."""
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        counts = (self.slots, self.context_length, self.answer_tokens)
        if min(self.tokens_per_s, self.prefill_tokens_per_s) <= 0 or min(counts) < 1:
            raise ValueError("speeds must be above 0, and slots, context and answer at least 1")
        if min(self.first_token_delay_s, self.load_s) < 0:
            raise ValueError("a delay can't be negative")


class FaultScript:
    """The faults still to come of one node. They outlive the engine: what crashed once need not crash again."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._requests: deque[tuple[Fault, int | None]] = deque()
        self._loads: deque[tuple[Fault, int | None]] = deque()
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """One more, after those that are still to come."""
        (self._loads if fault.kind == "load_failure" else self._requests).append((fault, fault.times))

    def next_request(self) -> Fault | None:
        """What the request that arrives now meets."""
        return self._take(self._requests)

    def next_load(self) -> Fault | None:
        """What the load that begins now meets."""
        return self._take(self._loads)

    @staticmethod
    def _take(queue: deque[tuple[Fault, int | None]]) -> Fault | None:
        if not queue:
            return None
        fault, left = queue[0]
        if left is not None:
            if left == 1:
                queue.popleft()
            else:
                queue[0] = (fault, left - 1)
        return fault


@dataclass(slots=True)
class _Answer:
    """One request at work or waiting. Times are of the engine's clock, in seconds."""

    handle: Handle
    request: InferRequest
    fault: Fault | None
    prompt_tokens: int
    limit: int
    """Tokens of the whole answer; vectors, of an embedding."""
    reason: FinishReason
    script: Script
    streamer: TextStreamer
    queued_at: float
    reported_at: float
    given: int = 0
    """Of the limit, those of the continuation included."""
    started_at: float = 0.0
    first_at: float = math.inf
    """When the first token is due."""
    due_at: float = math.inf
    """When there is something to do."""
    first_token_at: float | None = None
    unsent: list[int] = field(default_factory=list)
    text: str = ""

    @property
    def mine(self) -> int:
        """Given out here."""
        return self.given - len(self.request.continuation)

    def meets(self, kind: FaultKind) -> bool:
        return self.fault is not None and self.fault.kind == kind and self.mine == self.fault.after_tokens


class SimulatedEngine:
    """The engine itself, without I/O; ``clock`` is any monotonic one. Implements the protocol of ``interface.py``.

    ``step`` does all that is due now, gives out tokens that are late in one piece, and raises EngineCrashed where the
    script says so. ``on_gap`` is told to leave out one number of a request's stream.
    """

    def __init__(
        self,
        spec: SimulatedSpec,
        faults: FaultScript,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_gap: Callable[[Handle], None] = lambda _: None,
    ) -> None:
        self.slots = spec.slots
        self.context_length = spec.context_length
        self.capabilities = Capabilities(tools=False, same_answer=True)
        self._spec = spec
        self._faults = faults
        self._clock = clock
        self._on_gap = on_gap
        self._running: dict[Handle, _Answer] = {}
        self._pending: dict[Handle, _Answer] = {}
        self._counted: dict[Handle, int] = {}
        """Requests that only want to know the tokens of their prompt; they meet no faults."""
        self._report_at = math.inf
        """When a waiting request wants a sign of life."""

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Take a request in. Raises NodeBusy (scripted), ContextOverflow, InvalidRequest (a wrong continuation)."""
        if request.count_only:
            self._counted[handle] = size_of(prompt_text(request))
            return
        fault = self._faults.next_request()
        if fault is not None and fault.kind == "busy":
            raise NodeBusy("the simulated node is busy, as its script says")
        make = self._embedding if request.kind == "embedding" else self._answer
        self._pending[handle] = make(handle, request, fault)
        self._fill()

    def _answer(self, handle: Handle, request: InferRequest, fault: Fault | None) -> _Answer:
        prompt_tokens = size_of(prompt_text(request))
        room = self.context_length - prompt_tokens
        if room < 1:
            raise ContextOverflow(
                f"the prompt has {prompt_tokens} tokens; the context has {self.context_length}", param="messages"
            )
        cut = min(room, request.sampling.max_tokens or room)
        script = Script.of(request)
        continuation = request.continuation
        limit = min(cut, self._spec.answer_tokens)
        if len(continuation) > limit or continuation != script.tokens(len(continuation)):
            raise InvalidRequest("the continuation does not belong to this answer", param="continuation")
        streamer = TextStreamer(request.sampling.stop)
        for token in continuation:
            streamer.feed(token_text(token).encode())  # the client has this already
        reason: FinishReason = "length" if cut <= self._spec.answer_tokens else "stop"
        now = self._clock()
        given = len(continuation)
        return _Answer(handle, request, fault, prompt_tokens, limit, reason, script, streamer, now, now, given)

    def _embedding(self, handle: Handle, request: InferRequest, fault: Fault | None) -> _Answer:
        sizes = [size_of(text) for text in request.inputs]
        if not request.truncate and max(sizes, default=0) > self.context_length:
            raise ContextOverflow(
                f"an input has {max(sizes)} tokens; the context has {self.context_length}", param="input"
            )
        tokens = sum(min(size, self.context_length) for size in sizes)
        now = self._clock()
        return _Answer(handle, request, fault, tokens, len(sizes), "stop", Script(0), TextStreamer(), now, now)

    def _fill(self) -> None:
        """Give free slots to those that waited longest."""
        spec, now = self._spec, self._clock()
        while self._pending and len(self._running) < self.slots:
            answer = self._pending.pop(next(iter(self._pending)))
            self._running[answer.handle] = answer
            answer.started_at = now
            work = answer.prompt_tokens + len(answer.request.continuation)
            delay = spec.first_token_delay_s + work / spec.prefill_tokens_per_s
            if answer.fault is not None and answer.fault.kind == "slow_first_token":
                delay += answer.fault.seconds
            answer.first_at = now + delay
            answer.due_at = min(answer.first_at, answer.reported_at + PROGRESS_S)
        self._report_at = min((answer.reported_at for answer in self._pending.values()), default=math.inf) + PROGRESS_S

    def cancel(self, handle: Handle) -> bool:
        """Forget a request; its slot is free, and taken by the next, when this returns."""
        here = self._running.pop(handle, None) or self._pending.pop(handle, None)
        counted = self._counted.pop(handle, None)
        self._fill()
        return here is not None or counted is not None

    def next_due(self) -> float:
        """When :meth:`step` has something to do, on the engine's clock; inf: never."""
        if self._counted:
            return self._clock()
        return min(self._report_at, min((answer.due_at for answer in self._running.values()), default=math.inf))

    def step(self, sink: Sink) -> bool:
        """Do what is due. False: nothing was. Raises EngineCrashed (scripted), after what came before it."""
        now = self._clock()
        counted, self._counted = self._counted, {}
        for handle, tokens in counted.items():
            sink.end(handle, "stop", Usage(prompt_tokens=tokens, completion_tokens=0), Timings())
        due = [answer for answer in self._running.values() if answer.due_at <= now]
        for answer in due:
            self._advance(answer, now, sink)
        waited = now >= self._report_at
        if waited:
            for answer in self._pending.values():
                if now >= answer.reported_at + PROGRESS_S:
                    answer.reported_at = now
                    sink.progress(answer.handle, "queued", 0, answer.prompt_tokens)
        if due or waited:
            self._fill()
        return bool(due or counted) or waited

    def _advance(self, answer: _Answer, now: float, sink: Sink) -> None:
        if now < answer.first_at:
            self._report(answer, now, sink)
            return
        speed = math.inf if answer.request.kind == "embedding" else self._spec.tokens_per_s
        while not self._fails(answer, sink):
            if answer.given >= answer.limit or answer.streamer.stopped:
                self._finish(answer, now, sink)
                return
            answer.due_at = answer.first_at + answer.mine / speed
            if answer.due_at > now:
                break
            if answer.first_token_at is None:
                answer.first_token_at = now
            self._give(answer, sink)
        self._send(answer, sink)

    def _report(self, answer: _Answer, now: float, sink: Sink) -> None:
        if now >= answer.reported_at + PROGRESS_S:
            answer.reported_at = now
            share = (now - answer.started_at) / (answer.first_at - answer.started_at)
            sink.progress(answer.handle, "prefill", int(share * answer.prompt_tokens), answer.prompt_tokens)
        answer.due_at = min(answer.first_at, answer.reported_at + PROGRESS_S)

    def _fails(self, answer: _Answer, sink: Sink) -> bool:
        """The script's fault, where it is reached. True: this request says nothing more. Raises EngineCrashed."""
        if answer.fault is None:
            return False
        if answer.meets("crash"):
            self._send(answer, sink)
            raise EngineCrashed(f"the simulated engine crashed after {answer.mine} tokens, as its script says")
        if answer.meets("hang"):
            answer.due_at = math.inf
            return True
        if answer.meets("gap"):
            self._send(answer, sink)
            self._on_gap(answer.handle)
            answer.fault = None
        return False

    def _give(self, answer: _Answer, sink: Sink) -> None:
        if answer.request.kind == "embedding":
            sink.embedded(answer.handle, answer.given, vector(answer.request.inputs[answer.given]))
        else:
            token = answer.script.token(answer.given)
            answer.unsent.append(token)
            answer.text += answer.streamer.feed(token_text(token).encode())
        answer.given += 1

    @staticmethod
    def _send(answer: _Answer, sink: Sink, *, last: bool = False) -> None:
        """What may be sent. Tokens whose text may be the begin of a stop text wait, so that ids and text belong."""
        if answer.text or (last and answer.unsent):
            sink.delta(answer.handle, Piece(answer.text, token_ids=tuple(answer.unsent)))
            answer.text = ""
            answer.unsent.clear()

    def _finish(self, answer: _Answer, now: float, sink: Sink) -> None:
        if not answer.streamer.stopped:
            answer.text += answer.streamer.finish()
        self._send(answer, sink, last=True)
        del self._running[answer.handle]
        first = now if answer.first_token_at is None else answer.first_token_at
        completion = 0 if answer.request.kind == "embedding" else answer.given
        sink.end(
            answer.handle,
            "stop" if answer.streamer.stopped else answer.reason,
            Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=completion),
            Timings(
                queue_ms=(answer.started_at - answer.queued_at) * 1000,
                prefill_ms=(first - answer.started_at) * 1000,
                decode_ms=(now - first) * 1000,
            ),
            answer.streamer.met,
        )

    def going_on(self) -> bool:
        return True

    def close(self) -> None:
        """Forget everything."""
        self._running.clear()
        self._pending.clear()
        self._counted.clear()
        self._report_at = math.inf
