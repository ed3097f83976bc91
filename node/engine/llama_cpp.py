"""GGUF models on llama.cpp: continuous batching over its low-level API.

Slots are sequences of one context. A step is one decode call for every answering slot, then one piece of prefill for
one slot, so that a long prompt never stops running answers. How calls are cut so that an answer depends on nothing but
its request is in :mod:`llmlb.node.engine.kv`.

Defaults where a request says nothing are llama.cpp's own: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05.
Source: common/common.h, ``common_params_sampling``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from llmlb.bus.errors import EngineCrashed, InvalidRequest
from llmlb.bus.messages.infer import FinishReason, InferRequest, Timings, Usage
from llmlb.node.engine import kv
from llmlb.node.engine.embedding import Embedder
from llmlb.node.engine.intake import Intake, marker_pieces
from llmlb.node.engine.interface import Capabilities, Handle, LoadOptions, Piece, Sink
from llmlb.node.engine.jobs import Job, second_rows
from llmlb.node.engine.llama_context import Context, ContextSize
from llmlb.node.engine.llama_grammar import Unfinished
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.llama_vision import ImageChunk, Projector
from llmlb.node.engine.prompts import PromptMaker
from llmlb.node.engine.refusals import refusal
from llmlb.node.engine.sampling import Logits
from llmlb.node.engine.selftest import IdleTest
from llmlb.node.engine.signs import Signs
from llmlb.node.engine.slots import Slots
from llmlb.node.engine.templates import ChatTemplate

log = logging.getLogger("llmlb.node.engine.llama_cpp")

BATCH = 512
"""Tokens of a prefill call at most, when no answer waits for it."""
SLICE_S = 0.25
"""Time of a prefill call at most, while answers wait for it."""
IDLE_SLICE_S = 2.5
"""Time of a prefill call at most, while no answer waits for it. A cancellation ends it at once."""
COALESCE_S = 0.03
"""Between two pieces of one answer: faster tokens share one. Each piece wakes up every process on its way to the
client, and on a small machine takes time from the one that computes: 0.84 of llama-server's speed without it. All
answers say something in the same step, so that it is one round of waking up. Text moves 30 times a second then."""
DEFAULT_SLOTS = 4
MAX_SLOTS = kv.SMALL
DEFAULT_CONTEXT = 4096
LONG_S = 0.5
"""A call of so long is asked on its way whether it is still wanted, and says that it goes on."""
_UNSTOPPABLE = -2
_ABORTED = 2


class LlamaCppEngine:
    """One GGUF model. Implements :class:`llmlb.node.engine.interface.Engine`.

    How many requests wait is bounded by the agent, which counts them.
    """

    def __init__(self, options: LoadOptions, progress: Callable[[float], None] = lambda share: None) -> None:
        """Load the model. Raises ModelLoadFailed with llama.cpp's last words."""
        self.model = Model(options.path, options.model, gpu_layers=options.gpu_layers, progress=progress)
        self.slots = min(options.slots or DEFAULT_SLOTS, MAX_SLOTS)
        threads = options.threads or os.cpu_count() or 1
        tokens = min(options.context_length or DEFAULT_CONTEXT, self.model.trained_context)
        self.context = Context(self.model, ContextSize(self.slots, tokens, max(BATCH, MAX_SLOTS), threads))
        self.context_length = self.context.tokens
        template = ChatTemplate(options.template, bos=self.model.bos, eos=self.model.eos)
        self._prompts = PromptMaker(template)
        self._projector: Projector | None = None
        if options.projector:
            self._projector = Projector(self.model, options.projector, threads=threads, batch=self.context.batch)
            self._projector.going_on = lambda: self._signs.going_on()
        self._embedder = Embedder(self.model, self.context, threads, lambda: self._signs.going_on())
        if not self.context.has_memory:
            self.context_length = self._embedder.limit
        self._intake = Intake(self.model, self._prompts, self._projector, self.context_length)
        self._marks = marker_pieces(self.model, template.text)
        self._slots = Slots(self.context, self.slots, removable=self.model.removable)
        self._pending: deque[Job] = deque()
        self._counted: deque[Job] = deque()
        """Requests that only want to know how many tokens their prompt has."""
        self._reading: deque[Job] = deque()
        """Requests with a long prompt, of which the tokens are still being found out."""
        self._prefilling: deque[Job] = deque()
        self._answering: list[Job] = []
        waiting, at_work = (self._pending, self._reading, self._embedder.jobs), (self._prefilling, self._answering)
        self._signs = Signs(waiting, at_work)
        self._token_s = 0.0
        self._said_at = 0.0  # when running answers said something last
        self._saying = True
        self._stop_prefill = threading.Event()
        self._prefill_handle: Handle | None = None
        self._test = IdleTest(self.model, self.context, self.slots)
        self.context.abort_when(self._stopped)
        answers, sees = self.context.has_memory, self._projector is not None and self._projector.vision
        self.capabilities = Capabilities(chat=answers, vision=sees, embedding=True, tools=answers)

    # Requests

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Take a request in. Raises InvalidRequest (template, images, schema, capability), ContextOverflow."""
        if request.kind == "embedding":
            self._embedder.submit(handle, request)
        else:
            self._read_on(self._intake.job(handle, request, self.capabilities))

    def _read_on(self, job: Job) -> None:
        """Read its prompt, or some more of a long one. Raises as :meth:`submit`."""
        if not self._intake.read(job):
            self._reading.append(job)
        else:
            (self._counted if job.request.count_only else self._pending).append(job)

    def interrupt(self, handle: Handle) -> None:
        """A request, or a cancellation of it, is on its way: end the prefill call it is in, or one of the self-test,
        which may take as long as a whole short prompt. From any thread."""
        self._test.stop.set()
        if self._prefill_handle == handle:
            self._stop_prefill.set()
        self._embedder.interrupt(handle)

    def _stopped(self) -> bool:
        """Whether the call that runs is of no more use: one of a request, or else one of the self-test."""
        self._signs.going_on()
        return (self._test.stop if self._prefill_handle is None else self._stop_prefill).is_set()

    def cancel(self, handle: Handle) -> bool:
        for job in [*self._answering, *self._prefilling, *self._pending, *self._counted, *self._reading]:
            if job.handle == handle:
                self._release(job)
                return True
        return self._embedder.cancel(handle)

    def _release(self, job: Job) -> None:
        """Its slot is free; what its cache holds stays for a later prompt."""
        for where in (self._answering, self._prefilling, self._pending, self._counted, self._reading):
            if job in where:
                where.remove(job)
        if job.seq >= 0:
            self._slots.give_back(job)
        job.close()

    # Work

    def step(self, sink: Sink) -> bool:
        self._signs.sink = sink
        busy = self._work(sink)
        self._signs.look()
        return busy

    def _work(self, sink: Sink) -> bool:
        idle = not (self._answering or self._prefilling or self._pending or self._reading or self._counted)
        while self._counted:
            job = self._counted.popleft()
            job.close()
            sink.end(job.handle, "stop", Usage(prompt_tokens=job.prompt_tokens, completion_tokens=0), Timings())
        if self._reading:
            self._read_next(sink)
        if self._admit(sink):
            return True  # a first token goes out before anything else is computed
        if self._answering:
            self._decode(sink)
            self._decide(sink)
        if self._prefilling:
            self._prefill(sink)
        if self._embedder.step(sink):
            return True
        if self._answering or self._prefilling or self._pending or self._reading or self._counted:
            return True
        # What this step has said goes out before anything else is computed.
        return self._test_a_little() if idle else True

    def _read_next(self, sink: Sink) -> None:
        """Some more of the long prompt whose turn it is."""
        job = self._reading.popleft()
        try:
            self._read_on(job)
        except Exception as error:  # noqa: BLE001  # the top of a request: it fails alone
            sink.failed(job.handle, refusal(error))

    def _test_a_little(self) -> bool:
        """Nothing to do: go on with the self-test. False when there is none left."""
        if self._test.over:
            return False
        safe = self._test.step(self._slots.used_at, self._slots.empty)
        if safe is None:
            return True
        self.capabilities = replace(self.capabilities, same_answer=safe)
        return False

    def _admit(self, sink: Sink) -> bool:
        """Give waiting requests free slots. True when one got its first token without computing anything."""
        said = False
        while self._pending and self._slots.free:
            self._test.leave()
            job = self._pending.popleft()
            logits = self._slots.take(job, [*self._answering, *self._prefilling])
            if logits is None:
                self._prefilling.append(job)
            else:
                self._answering.append(job)
                self._take_token(job, logits, sink)
                said = True
        return said

    def _fail(self, jobs: list[Job], sink: Sink, code: int) -> None:
        for job in jobs:
            seq = job.seq
            self._release(job)
            self._slots.empty(seq)
            sink.failed(job.handle, EngineCrashed(f"llama.cpp failed to decode (code {code})"))

    def _decode(self, sink: Sink) -> None:
        """One token for every answering slot; two for one whose second row was guessed right."""
        jobs = sorted((job for job in self._answering if job.undecided is None), key=lambda job: job.seq)
        if not jobs:
            return
        guesses = second_rows(jobs, self.context_length) if self.model.removable else {}
        rows: list[tuple[int, int, int, bool]] = []
        for job in jobs:
            rows.append((job.next_token, job.past, job.seq, True))
            if job.handle in guesses:
                rows.append((guesses[job.handle], job.past + 1, job.seq, True))
        code = self.context.decode(rows)
        if code != 0:
            self._fail(jobs, sink, code)
            return
        self._begin_round()
        logits = self.context.logits(len(rows))
        row = 0
        for job in jobs:
            job.past += 1
            guess = guesses.get(job.handle)
            going = self._take_token(job, logits[row], sink)
            row += 1
            if guess is None:
                continue
            if going and job.next_token == guess:
                job.past += 1
                self._take_token(job, logits[row], sink)
            elif job.seq >= 0:
                self.context.forget(job.seq, job.past)
            row += 1

    def _decide(self, sink: Sink) -> None:
        """Go on with the token of one answer whose grammar takes long; each in turn."""
        job = next((job for job in self._answering if job.undecided is not None), None)
        if job is not None and job.undecided is not None:
            self._answering.remove(job)
            self._answering.append(job)
            self._take_token(job, job.undecided, sink)

    def _begin_round(self) -> None:
        """After a step: do running answers say what they have, or go on collecting?"""
        now = time.monotonic()
        # A call of prefill may come before the next step: then nothing waits.
        self._saying = bool(self._prefilling) or now - self._said_at >= COALESCE_S
        if self._saying:
            self._said_at = now

    def _room(self) -> int:
        """Tokens of the next large call at most."""
        if not self._token_s:
            return 2 * kv.BLOCK  # nothing is known about the speed yet
        slice_s = SLICE_S if self._answering else IDLE_SLICE_S
        return max(kv.BLOCK, min(BATCH, int(slice_s / self._token_s)))

    def _prefill(self, sink: Sink) -> None:
        job = self._prefilling[0]
        self._prefilling.rotate(-1)
        call, whole = job.next_call(self._room())
        began = time.monotonic()
        code = self._call(job, call, whole)
        if code == _ABORTED:
            self.context.forget(job.seq, job.past)  # its cancellation comes next; otherwise the call is made again
            return
        if code != 0:
            self._fail([job], sink, code)
            return
        if isinstance(call, list) and len(call) >= kv.BLOCK:
            took = (time.monotonic() - began) / len(call)
            self._token_s = took if not self._token_s else 0.7 * self._token_s + 0.3 * took
        job.advance(call)
        if not job.prefilled:
            return
        self._prefilling.remove(job)
        self._answering.append(job)
        job.resume(self.model, self._marks)
        if (reason := self._over(job)) is not None:
            self._finish(job, reason, Piece(), sink)
            return
        logits = self.context.logits(1)[0]
        self._slots.prefilled(job, logits)
        self._take_token(job, logits, sink)

    def _call(self, job: Job, call: list[int] | ImageChunk, wanted: bool) -> int:
        """One call of prefill; its return code."""
        self._stop_prefill.clear()
        rows = call.tokens if isinstance(call, ImageChunk) else len(call)
        self._prefill_handle = _UNSTOPPABLE if isinstance(call, ImageChunk) else job.handle
        long = rows > kv.BLOCK or self._token_s * rows > LONG_S
        if long:
            self.context.abortable(True)
        try:
            if isinstance(call, ImageChunk):
                assert self._projector is not None
                return self._projector.decode(self.context, call, job.past, job.seq)
            if len(call) > 1 or job.cells + 1 <= kv.LONE_MAX or job.cells + 2 > self.context_length:
                return self.context.decode_run(call, job.past, job.seq, wanted=wanted)
            second = (call[0], job.past + 1, job.seq, False)
            code = self.context.decode([(call[0], job.past, job.seq, wanted), second])
            self.context.forget(job.seq, job.past + 1)
            return code
        finally:
            if long:
                self.context.abortable(False)
            self._prefill_handle = None
            self._stop_prefill.clear()

    def _over(self, job: Job) -> FinishReason | None:
        """Why nothing more is to come, when a continuation held the whole answer already."""
        limit = job.request.sampling.max_tokens
        if job.reader.stopped or (job.reader.called and not job.request.parallel_tool_calls):
            return "stop"
        return "length" if limit is not None and job.sampled >= limit else None

    def _take_token(self, job: Job, logits: Logits, sink: Sink) -> bool:
        """Sample from logits and send what may be sent. False when the answer is over, or its token undecided."""
        try:
            token = job.sample(self.model, logits)
        except Unfinished:
            return False
        if job.grammar is not None and job.grammar.trouble is not None:
            self._release(job)
            sink.failed(job.handle, InvalidRequest(job.grammar.trouble, param="response_format"))
            return False
        if self.model.ends(token):
            self._finish(job, "stop", Piece(), sink)
            return False
        job.unsent.append(token)
        piece = job.reader.feed(self._marks.get(token) or self.model.piece(token))
        reason = self._over(job) or ("length" if job.cells + 1 >= self.context_length else None)
        if reason is not None:
            self._finish(job, reason, piece, sink)
        else:
            if (packed := job.pack(piece, wait=not self._saying)) is not None:
                job.reported_at = max(self._said_at, job.first_token_at)
                sink.delta(job.handle, packed)
            return True
        return False

    def _finish(self, job: Job, reason: FinishReason, piece: Piece, sink: Sink) -> None:
        rest = job.reader.finish()
        piece.text += rest.text
        piece.reasoning += rest.reasoning
        piece.tool_calls += rest.tool_calls
        if (packed := job.pack(piece)) is not None:
            sink.delta(job.handle, packed)
        if reason == "stop" and job.reader.called:
            reason = "tool_calls"
        usage, timings = job.usage(), job.timings()
        self._release(job)
        sink.end(job.handle, reason, usage, timings, job.reader.met)

    def going_on(self) -> bool:
        """It computes in steps; in one that never ends it says nothing anyway."""
        return True

    def close(self) -> None:
        """Free context and model; requests still here are forgotten."""
        for job in [*self._answering, *self._prefilling, *self._pending, *self._counted, *self._reading]:
            job.close()
        self._embedder.close()
        if self._projector is not None:
            self._projector.close()
        self.context.close()
        self.model.close()
