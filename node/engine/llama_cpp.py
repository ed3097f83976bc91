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
from collections.abc import Callable, Iterator
from dataclasses import replace

from llmlb.bus.errors import ContextOverflow, EngineCrashed, InvalidRequest, LlmlbError
from llmlb.bus.messages.infer import FinishReason, InferRequest, Timings, Usage
from llmlb.node.engine import kv
from llmlb.node.engine.embedding import Embedder
from llmlb.node.engine.grammars import grammar_for
from llmlb.node.engine.interface import Capabilities, Handle, LoadOptions, Piece, Sink
from llmlb.node.engine.jobs import Job
from llmlb.node.engine.llama_grammar import GrammarMask, schema_grammar
from llmlb.node.engine.llama_library import (
    Context,
    ContextSize,
    ImageChunk,
    Logits,
    Model,
    Projector,
)
from llmlb.node.engine.prompts import PromptMaker, RenderedPrompt, reader_for
from llmlb.node.engine.sampling import Sampler
from llmlb.node.engine.selftest import SelfTest
from llmlb.node.engine.templates import ChatTemplate

log = logging.getLogger("llmlb.node.engine.llama_cpp")

BATCH = 512
"""Tokens of a prefill call at most, when no answer waits for it."""
SLICE_S = 0.25
"""Time of a prefill call at most, while answers wait for it."""
IDLE_SLICE_S = 2.5
"""Time of a prefill call at most, while no answer waits for it. A cancellation ends it at once."""
COALESCE_S = 0.02
"""Between two pieces of one answer: faster tokens share one. Each piece wakes up every process on its way to the
client, and on a small machine takes time from the one that computes: 0.84 of llama-server's speed without it."""
QUIET_S = 1.0
"""So long after an answer the self-test goes on."""
READ_CHARACTERS = 4096
"""Of a prompt are turned into tokens at once, some milliseconds; then running answers take a step."""
_WHOLE = object()
DEFAULT_SLOTS = 4
MAX_SLOTS = kv.SMALL
DEFAULT_CONTEXT = 4096
PROGRESS_INTERVAL_S = 0.5
_ABORTED = 2
_HARMONY_MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>")
_MISTRAL_MARKS = ("[ARGS]", "[CALL_ID]")


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
        self._embedder = Embedder(self.model, self.context, threads)
        if not self.context.has_memory:
            self.context_length = self._embedder.limit
        self._marks = self._marker_pieces(template.text)
        self._held = [kv.Held() for _ in range(self.slots)]
        self._after_prompt: list[tuple[int, Logits] | None] = [None] * self.slots
        """By sequence: the length of the last whole prompt there, and the logits after it."""
        self._used_at = [0.0] * self.slots
        self._free = list(range(self.slots))
        self._pending: deque[Job] = deque()
        self._counted: deque[Job] = deque()
        """Requests that only want to know how many tokens their prompt has."""
        self._reading: deque[Job] = deque()
        """Requests with a long prompt, of which the tokens are still being found out."""
        self._prefilling: deque[Job] = deque()
        self._answering: list[Job] = []
        self._token_s = 0.0
        self._stop_prefill = threading.Event()
        self._prefill_handle: Handle | None = None
        self._stop_test = threading.Event()
        self.context.abort_when(self._stopped)
        self.capabilities = Capabilities(
            chat=self.context.has_memory,
            vision=self._projector is not None and self._projector.vision,
            embedding=True,
            tools=self.context.has_memory,
        )
        self._self_test: SelfTest | None = None
        self._tested = not self.context.has_memory

    def _marker_pieces(self, template: str) -> dict[int, bytes]:
        """Control tokens that the reader of answers has to see; all others have no text."""
        from llmlb.node.engine.reasoning import FAMILIES
        from llmlb.node.engine.tools import LLAMA3, MISTRAL

        texts = {text for family in FAMILIES for text in (family.open, family.close)}
        texts.update(LLAMA3.opens, MISTRAL.opens)
        if "<|channel|>" in template:
            texts.update(_HARMONY_MARKS)
        if "[TOOL_CALLS]" in template:
            texts.update(_MISTRAL_MARKS)
        pieces = {}
        for text in texts:
            tokens = self.model.tokenize(text, add_special=False) if text else []
            if len(tokens) == 1:
                pieces[tokens[0]] = text.encode()
        return pieces

    # Requests

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Take a request in. Raises InvalidRequest (template, images, schema, capability), ContextOverflow."""
        if request.kind == "embedding":
            self._embedder.submit(handle, request)
            return
        if not self.capabilities.chat:
            raise InvalidRequest(f"{self.model.name} is an embedding model; it can't answer", param="model")
        rendered = self._prompts.render(request)
        if rendered.images and not self.capabilities.vision:
            raise InvalidRequest(f"{self.model.name} takes text only: it has no vision capability", param="messages")
        job = Job(handle, request, rendered, [], reader_for(request, rendered))
        job.reading = self._read(job, rendered)
        self._read_on(job)

    def _read_on(self, job: Job) -> None:
        """Read its prompt, or some more of a long one. Raises as :meth:`submit`."""
        assert job.reading is not None
        try:
            whole = next(job.reading, _WHOLE) is _WHOLE
        except LlmlbError:
            job.close()
            raise
        if not whole:
            self._reading.append(job)
            return
        job.reading = None
        (self._counted if job.request.count_only else self._pending).append(job)

    def _read(self, job: Job, rendered: RenderedPrompt) -> Iterator[None]:
        """Tokens, room and grammar of a request; stops on the way where running answers may take a step.

        Reading takes milliseconds a message (llama.cpp compiles its regular expressions anew for each): what can't
        fit is not read to its end.
        """
        request = job.request
        param = "messages" if request.kind == "chat" else "prompt"
        if rendered.images and self._projector is not None:
            job.images = self._projector.prompt(rendered.pieces)
            job.parts += job.images.parts
        else:
            tokens: list[int] = []
            job.parts.append(tokens)
            begin = request.kind != "chat" or not self.model.begun(rendered.text)
            for number, part in enumerate(self.model.cut(rendered.text, READ_CHARACTERS)):
                if number:
                    if not request.count_only:
                        self._refuse_overflow(job, param, "more than ")
                    yield
                tokens += self.model.tokenize(part, add_special=begin and not number)
        if not job.prompt_tokens:
            raise InvalidRequest("the prompt is empty", param=param)
        if request.count_only:
            return
        if not isinstance(job.parts[-1], list):
            raise InvalidRequest("the prompt must not end with an image", param=param)
        self._refuse_overflow(job, param)
        grammar = grammar_for(request, rendered, schema_grammar)
        if grammar is not None:
            job.grammar = GrammarMask(self.model, grammar)
        job.sampler = Sampler(request.sampling, prompt=job.plain)

    def _refuse_overflow(self, job: Job, param: str, about: str = "") -> None:
        """Raises ContextOverflow when what was read of the prompt fills the context."""
        if job.prompt_tokens + len(job.request.continuation) >= self.context_length:
            raise ContextOverflow(
                f"the prompt has {about}{job.prompt_tokens} tokens; the context of {self.model.name} holds "
                f"{self.context_length}, and the answer needs at least one",
                param=param,
            )

    def interrupt(self, handle: Handle) -> None:
        """A request, or a cancellation of it, is on its way: end the prefill call it is in, or one of the self-test,
        which may take as long as a whole short prompt. From any thread."""
        self._stop_test.set()
        if self._prefill_handle == handle:
            self._stop_prefill.set()

    def _stopped(self) -> bool:
        """Whether the call that runs is of no more use: one of a request, or else one of the self-test."""
        return (self._stop_test if self._prefill_handle is None else self._stop_prefill).is_set()

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
            self._held[job.seq] = job.held() if self.model.removable else kv.Held()
            self._used_at[job.seq] = time.monotonic()
            self._free.append(job.seq)
            job.seq = -1
        job.close()

    # Work

    def step(self, sink: Sink) -> bool:
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
        if self._prefilling:
            self._prefill(sink)
        elif self._embedder.step(sink):
            return True
        self._report_waiting(sink)
        if self._answering or self._prefilling or self._pending or self._reading or self._counted:
            return True
        # What this step has said goes out before anything else is computed.
        return self._test_a_little() if idle else True

    def _read_next(self, sink: Sink) -> None:
        """Some more of the long prompt whose turn it is."""
        job = self._reading.popleft()
        try:
            self._read_on(job)
        except LlmlbError as error:
            sink.failed(job.handle, error)

    def _test_a_little(self) -> bool:
        """Nothing to do: go on with the self-test. False when there is none left."""
        if self._tested:
            return False
        # It takes the cache of two sequences, which whoever asks again at once would have to compute anew.
        if self._stop_test.wait(max(0.0, max(self._used_at) + QUIET_S - time.monotonic())):
            self._stop_test.clear()  # a command is in the queue, or was taken out of it before this was set
            return True
        if self._self_test is None:
            # The pair that was not used for longest: what the others hold may be asked for again.
            first = min(range(max(1, self.slots - 1)), key=lambda seq: max(self._used_at[seq : seq + 2]))
            pair = tuple(range(self.slots))[first : first + 2]
            for seq in pair:
                self._held[seq], self._after_prompt[seq] = kv.Held(), None
            self._self_test = SelfTest(self.model, self.context, pair)
        self.context.abortable(True)
        safe = self._self_test.step()
        self.context.abortable(False)
        if safe is None:
            return True
        if not safe and self._stop_test.is_set():  # ended on the way, so it says nothing
            self._leave_test()
            return True
        self._self_test, self._tested = None, True
        self.capabilities = replace(self.capabilities, same_answer=safe)
        return False

    def _leave_test(self) -> None:
        """There is something to do: the self-test begins anew later, as its sequences may be used."""
        if self._self_test is not None:
            self._self_test.leave()
            self._self_test = None

    def _admit(self, sink: Sink) -> bool:
        """Give waiting requests free slots. True when one got its first token without computing anything."""
        said = False
        while self._pending and self._free:
            self._leave_test()
            job = self._pending.popleft()
            held = list(self._held)
            for busy in [*self._answering, *self._prefilling]:
                held[busy.seq] = busy.held()
            if not self.model.removable:
                held = [kv.Held() for _ in held]
            choice = kv.choose(job.plain, self._free, held, self._used_at)
            source = choice.sequence if choice.copy_from is None else choice.copy_from
            reuse = choice.reuse if job.plain else 0
            logits = self._logits_after(job, source, held[source], reuse)
            if logits is not None:
                reuse = len(job.plain)
            if choice.copy_from is not None and reuse:
                self.context.copy(choice.copy_from, choice.sequence)
            if not self.context.forget(choice.sequence, reuse):
                self.context.forget(choice.sequence)
                reuse, logits = 0, None
            self._free.remove(choice.sequence)
            job.begin(choice.sequence, reuse)
            self._after_prompt[job.seq] = None if logits is None else (reuse, logits)
            if logits is None:
                self._prefilling.append(job)
            else:
                self._answering.append(job)
                self._take_token(job, logits, sink)
                said = True
        return said

    def _logits_after(self, job: Job, source: int, held: kv.Held, reuse: int) -> Logits | None:
        """What prefill would end with, when this very prompt was the last one in that sequence."""
        saved = self._after_prompt[source]
        size = len(job.plain)
        if saved is None or saved[0] != size or not reuse or not job.text_only or job.request.continuation:
            return None
        return saved[1] if held.tokens[:size] == job.plain else None

    def _report_waiting(self, sink: Sink) -> None:
        now = time.monotonic()
        for job in [*self._pending, *self._reading]:
            if now - job.reported_at >= PROGRESS_INTERVAL_S:
                job.reported_at = now
                sink.progress(job.handle, "queued", 0, job.prompt_tokens)

    def _fail(self, jobs: list[Job], sink: Sink, code: int) -> None:
        for job in jobs:
            seq = job.seq
            self._release(job)
            self._held[seq], self._after_prompt[seq] = kv.Held(), None
            sink.failed(job.handle, EngineCrashed(f"llama.cpp failed to decode (code {code})"))

    def _decode(self, sink: Sink) -> None:
        """One token for every answering slot; two for one whose second row was guessed right."""
        jobs = sorted(self._answering, key=lambda job: job.seq)
        guesses = self._second_rows(jobs)
        rows: list[tuple[int, int, int, bool]] = []
        for job in jobs:
            rows.append((job.next_token, job.past, job.seq, True))
            if job.handle in guesses:
                rows.append((guesses[job.handle], job.past + 1, job.seq, True))
        code = self.context.decode(rows)
        if code != 0:
            self._fail(jobs, sink, code)
            return
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
            elif going:
                self.context.forget(job.seq, job.past)
            row += 1

    def _second_rows(self, jobs: list[Job]) -> dict[Handle, int]:
        """Guesses for the slots whose single row would take another kernel than a row among others."""
        guesses = {}
        by_seq = {job.seq: job for job in jobs}
        for run in kv.runs(sorted(by_seq)):
            job = by_seq[run[0]]
            room = job.cells + 2 <= self.context_length
            if len(run) == 1 and job.cells + 1 > kv.LONE_MAX and room and self.model.removable:
                guesses[job.handle] = job.guess()
        return guesses

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
            now = time.monotonic()
            if now - job.reported_at >= PROGRESS_INTERVAL_S:
                job.reported_at = now
                total = job.prompt_tokens
                sink.progress(job.handle, "prefill", min(job.cells, total), total)
            return
        self._prefilling.remove(job)
        self._answering.append(job)
        job.resume(self.model, self._marks)
        if (reason := self._over(job)) is not None:
            self._finish(job, reason, Piece(), sink)
            return
        logits = self.context.logits(1)[0]
        if job.text_only and not job.request.continuation:
            self._after_prompt[job.seq] = (len(job.plain), logits.copy())
        self._take_token(job, logits, sink)

    def _call(self, job: Job, call: list[int] | ImageChunk, wanted: bool) -> int:
        """One call of prefill; its return code."""
        self._stop_prefill.clear()
        self._prefill_handle = job.handle
        long = isinstance(call, list) and len(call) > kv.BLOCK
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
        """Sample from logits and send what may be sent. False when the answer is over."""
        token = job.sample(self.model, logits)
        if self.model.ends(token):
            self._finish(job, "stop", Piece(), sink)
            return False
        job.unsent.append(token)
        piece = job.reader.feed(self._marks.get(token) or self.model.piece(token))
        reason = self._over(job) or ("length" if job.cells + 1 >= self.context_length else None)
        if reason is not None:
            self._finish(job, reason, piece, sink)
        else:
            # A call of prefill may come before the next step: then nothing waits.
            if (packed := job.pack(piece, 0.0 if self._prefilling else COALESCE_S)) is not None:
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

    def close(self) -> None:
        """Free context and model; requests still here are forgotten."""
        for job in [*self._answering, *self._prefilling, *self._pending, *self._counted, *self._reading]:
            job.close()
        self._embedder.close()
        if self._projector is not None:
            self._projector.close()
        self.context.close()
        self.model.close()
