"""GGUF models on llama.cpp: continuous batching over llama-cpp-python's low-level API.

Slots are sequences of one context. A step is one decode call for every answering slot, then one piece of prefill for
one slot, so that a long prompt never stops running answers. Decode and prefill are separate calls, and prefill is cut
at fixed positions counted from 0: the answer of a request then does not depend on what shares the batch (design.md,
"The same answer": decode batches of 1 to 48 tokens give identical tokens, larger calls take other kernels).

Defaults where a request says nothing are llama.cpp's own: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05.
Source: common/common.h, ``common_params_sampling``.

The only file that imports llama_cpp.
"""

from __future__ import annotations

import ctypes
import logging
import os
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

# Before the library is loaded, which reads it once. At a barrier libgomp spins for milliseconds before it sleeps; with
# any other process on the cores that costs a time slice a barrier. Measured on 2 cores with one other busy process:
# 8 tokens/s with the default, 16 with 300; with idle cores no difference (29 and 33).
os.environ.setdefault("GOMP_SPINCOUNT", "300")  # noqa: TID251  # written for a C library, not read

import llama_cpp.llama_cpp as lib

from llmlb.bus.errors import ContextOverflow, EngineCrashed, InvalidRequest, ModelLoadFailed
from llmlb.bus.messages.infer import InferRequest, Sampling, Timings, Usage
from llmlb.node.engine.interface import Capabilities, Handle, LoadOptions, Piece, Sink
from llmlb.node.engine.streamer import TextStreamer
from llmlb.node.engine.templates import ChatTemplate

log = logging.getLogger("llmlb.node.engine.llama_cpp")

PREFILL_CHUNK = 128
"""Prompt tokens of one prefill call. Cuts are at its multiples, counted from position 0."""
REPLAY_CHUNK = 32
"""Tokens of one call that replays an answer begun elsewhere: small enough to take the decode kernels."""
DEFAULT_SLOTS = 4
MAX_SLOTS = 48
DEFAULT_CONTEXT = 4096
PENDING_MAX = 512
PROGRESS_INTERVAL_S = 0.5
PENALTY_WINDOW = 64
DEFAULT_TEMPERATURE, DEFAULT_TOP_K, DEFAULT_TOP_P, DEFAULT_MIN_P = 0.8, 40, 0.95, 0.05

_PIECE_BYTES = 256
_GGML_LOG_LEVEL_ERROR = 4

_last_errors: deque[str] = deque(maxlen=5)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's log: errors are kept for messages, the rest is dropped. Lives as long as the library calls it."""
    if level >= _GGML_LOG_LEVEL_ERROR:
        _last_errors.append(text.decode(errors="replace").strip())


@dataclass(slots=True)
class _Slot:
    """One request at work, or waiting with ``seq`` -1."""

    handle: Handle
    request: InferRequest
    prompt: list[int]
    streamer: TextStreamer
    queued_at: float
    seq: int = -1
    past: int = 0
    """Tokens in the KV cache."""
    replayed: int = 0
    """Tokens of the continuation that are in the KV cache."""
    sampled: int = 0
    """Tokens of the answer, those of the continuation included."""
    next_token: int = -1
    unsent: list[int] = field(default_factory=list)
    sampler: Any = None
    started_at: float = 0.0
    first_token_at: float = 0.0
    reported_at: float = 0.0


class LlamaCppEngine:
    """One GGUF model. Implements :class:`llmlb.node.engine.interface.Engine`.

    A full pending list (PENDING_MAX) is NodeBusy for the agent to check through ``slots`` and its own count; here it
    only bounds memory.
    """

    def __init__(self, options: LoadOptions) -> None:
        """Load the model. Raises ModelLoadFailed with llama.cpp's last words."""
        self._model_name = options.model
        _last_errors.clear()
        lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self._model = self._load_model(options)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._n_vocab = lib.llama_vocab_n_tokens(self._vocab)
        trained = lib.llama_model_n_ctx_train(self._model)
        self.slots = min(options.slots or DEFAULT_SLOTS, MAX_SLOTS)
        self.context_length = min(options.context_length or DEFAULT_CONTEXT, trained)
        self._context = self._make_context(options)
        self.context_length = lib.llama_n_ctx_seq(self._context)
        self._memory = lib.llama_get_memory(self._context)
        self._template = ChatTemplate(
            options.template,
            bos=self._special_text(lib.llama_vocab_bos(self._vocab)),
            eos=self._special_text(lib.llama_vocab_eos(self._vocab)),
        )
        self._batch = lib.llama_batch_init(max(PREFILL_CHUNK, MAX_SLOTS), 0, 1)
        self._piece_buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        self._pieces: dict[int, bytes] = {}
        self._free = list(range(self.slots))
        self._pending: deque[_Slot] = deque()
        self._prefilling: deque[_Slot] = deque()
        self.capabilities = Capabilities()
        self._answering: list[_Slot] = []

    # Loading

    def _load_model(self, options: LoadOptions) -> Any:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = -1
        model = lib.llama_model_load_from_file(options.path.encode(), params)
        if not model:
            said = "; ".join(_last_errors) or "no reason given"
            raise ModelLoadFailed(f"llama.cpp could not load {options.model}: {said}", detail=options.path)
        return model

    def _make_context(self, options: LoadOptions) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = self.context_length * self.slots
        params.n_seq_max = self.slots
        params.n_batch = params.n_ubatch = max(PREFILL_CHUNK, MAX_SLOTS)
        params.n_threads = params.n_threads_batch = options.threads or os.cpu_count() or 1
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.kv_unified = False
        params.no_perf = True
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            # Some models have no flash attention kernel for their head size.
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            context = lib.llama_init_from_model(self._model, params)
        if not context:
            said = "; ".join(_last_errors) or "no reason given"
            raise ModelLoadFailed(
                f"llama.cpp could not make {self.slots} slots of {self.context_length} tokens "
                f"for {options.model}: {said}"
            )
        return context

    # Text and tokens

    def _special_text(self, token: int) -> str:
        if token < 0:
            return ""
        text = lib.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace") if text else ""

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        data = text.encode("utf-8", "surrogatepass")
        size = len(data) + 8
        buffer = (lib.llama_token * size)()
        count = lib.llama_tokenize(self._vocab, data, len(data), buffer, size, add_special, True)
        if count < 0:
            raise InvalidRequest("the prompt can't be turned into tokens", param="messages")
        return list(buffer[:count])

    def _prompt_tokens(self, request: InferRequest) -> list[int]:
        if request.kind == "completion":
            return self._tokenize(request.prompt or "", add_special=True)
        text = self._template.render(request.messages)
        bos = lib.llama_vocab_bos(self._vocab)
        wants_bos = bool(lib.llama_vocab_get_add_bos(self._vocab)) and bos >= 0
        has_bos = wants_bos and text.startswith(self._special_text(bos))
        return self._tokenize(text, add_special=not has_bos)

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            count = lib.llama_token_to_piece(self._vocab, token, self._piece_buffer, _PIECE_BYTES, 0, False)
            if count < 0:
                buffer = ctypes.create_string_buffer(-count)
                count = lib.llama_token_to_piece(self._vocab, token, buffer, -count, 0, False)
                piece = buffer.raw[:count]
            else:
                piece = self._piece_buffer.raw[:count]
            self._pieces[token] = piece
        return piece

    def _make_sampler(self, sampling: Sampling) -> Any:
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            lib.llama_sampler_chain_add(chain, sampler)

        if sampling.repeat_penalty != 1.0 or sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0:
            add(
                lib.llama_sampler_init_penalties(
                    self._n_vocab,
                    PENALTY_WINDOW,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        temperature = DEFAULT_TEMPERATURE if sampling.temperature is None else sampling.temperature
        if temperature == 0.0:
            add(lib.llama_sampler_init_greedy())
            return chain
        top_k = DEFAULT_TOP_K if sampling.top_k is None else sampling.top_k
        top_p = DEFAULT_TOP_P if sampling.top_p is None else sampling.top_p
        min_p = DEFAULT_MIN_P if sampling.min_p is None else sampling.min_p
        seed = random.getrandbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        if top_k > 0:
            add(lib.llama_sampler_init_top_k(top_k))
        if top_p < 1.0:
            add(lib.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0.0:
            add(lib.llama_sampler_init_min_p(min_p, 1))
        add(lib.llama_sampler_init_temp(temperature))
        # LLAMA_DEFAULT_SEED (0xFFFFFFFF) means "random" to llama.cpp.
        add(lib.llama_sampler_init_dist(0xFFFFFFFE if seed == 0xFFFFFFFF else seed))
        return chain

    # Requests

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Take a request in. Raises InvalidRequest (template), ContextOverflow."""
        prompt = self._prompt_tokens(request)
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="prompt" if request.kind == "completion" else "messages")
        if len(prompt) + len(request.continuation) >= self.context_length:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens; the context of {self._model_name} holds "
                f"{self.context_length}, and the answer needs at least one",
                param="messages" if request.kind == "chat" else "prompt",
            )
        self._pending.append(
            _Slot(
                handle=handle,
                request=request,
                prompt=prompt,
                streamer=TextStreamer(request.sampling.stop),
                queued_at=time.monotonic(),
            )
        )

    def cancel(self, handle: Handle) -> bool:
        for slot in [*self._answering, *self._prefilling, *self._pending]:
            if slot.handle == handle:
                self._release(slot)
                return True
        return False

    def _release(self, slot: _Slot) -> None:
        for where in (self._answering, self._prefilling, self._pending):
            if slot in where:
                where.remove(slot)
        if slot.sampler is not None:
            lib.llama_sampler_free(slot.sampler)
            slot.sampler = None
        if slot.seq >= 0:
            lib.llama_memory_seq_rm(self._memory, slot.seq, -1, -1)
            self._free.append(slot.seq)
            slot.seq = -1

    # Work

    def step(self, sink: Sink) -> bool:
        while self._pending and self._free:
            slot = self._pending.popleft()
            slot.seq = self._free.pop(0)
            slot.sampler = self._make_sampler(slot.request.sampling)
            slot.started_at = time.monotonic()
            self._prefilling.append(slot)
        if not self._answering and not self._prefilling:
            return False
        if self._answering:
            self._decode(sink)
        if self._prefilling:
            self._prefill(sink)
        self._report_waiting(sink)
        return True

    def _report_waiting(self, sink: Sink) -> None:
        now = time.monotonic()
        for slot in self._pending:
            if now - slot.reported_at >= PROGRESS_INTERVAL_S:
                slot.reported_at = now
                sink.progress(slot.handle, "queued", 0, len(slot.prompt))

    def _run(self, items: list[tuple[int, int, int, bool]]) -> int:
        """One llama_decode of (token, position, sequence, want logits) items; its return code."""
        batch = self._batch
        batch.n_tokens = len(items)
        for i, (token, position, sequence, logits) in enumerate(items):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        return int(lib.llama_decode(self._context, batch))

    def _fail(self, slots: list[_Slot], sink: Sink, code: int) -> None:
        for slot in slots:
            self._release(slot)
            sink.failed(slot.handle, EngineCrashed(f"llama.cpp failed to decode (code {code})"))

    def _decode(self, sink: Sink) -> None:
        slots = list(self._answering)
        code = self._run([(slot.next_token, slot.past, slot.seq, True) for slot in slots])
        if code != 0:
            self._fail(slots, sink, code)
            return
        for index, slot in enumerate(slots):
            slot.past += 1
            self._take_token(slot, index, sink)

    def _prefill(self, sink: Sink) -> None:
        slot = self._prefilling[0]
        self._prefilling.rotate(-1)
        if slot.past < len(slot.prompt):
            stop = min(len(slot.prompt), (slot.past // PREFILL_CHUNK + 1) * PREFILL_CHUNK)
            tokens = slot.prompt[slot.past : stop]
        else:
            tokens = list(slot.request.continuation[slot.replayed : slot.replayed + REPLAY_CHUNK])
            slot.replayed += len(tokens)
        done = slot.past + len(tokens)
        whole = done == len(slot.prompt) + len(slot.request.continuation)
        last = len(tokens) - 1
        code = self._run([(t, slot.past + i, slot.seq, whole and i == last) for i, t in enumerate(tokens)])
        if code != 0:
            self._fail([slot], sink, code)
            return
        slot.past = done
        if not whole:
            now = time.monotonic()
            if now - slot.reported_at >= PROGRESS_INTERVAL_S:
                slot.reported_at = now
                sink.progress(slot.handle, "prefill", min(done, len(slot.prompt)), len(slot.prompt))
            return
        self._prefilling.remove(slot)
        self._answering.append(slot)
        for token in slot.request.continuation:
            # What the client has already is not sent again; only the streamer's held-back end matters.
            lib.llama_sampler_accept(slot.sampler, token)
            slot.streamer.feed(self._piece(token))
            slot.sampled += 1
        self._take_token(slot, last, sink)

    def _take_token(self, slot: _Slot, index: int, sink: Sink) -> None:
        """Sample from the logits of batch item ``index`` and send what may be sent."""
        token = int(lib.llama_sampler_sample(slot.sampler, self._context, index))
        if slot.first_token_at == 0.0:
            slot.first_token_at = time.monotonic()
        slot.sampled += 1
        slot.next_token = token
        if lib.llama_vocab_is_eog(self._vocab, token):
            self._finish(slot, "stop", sink)
            return
        slot.unsent.append(token)
        text = slot.streamer.feed(self._piece(token))
        limit = slot.request.sampling.max_tokens
        if slot.streamer.stopped:
            self._send(slot, text, sink)
            self._finish(slot, "stop", sink)
        elif (limit is not None and slot.sampled >= limit) or slot.past + 1 >= self.context_length:
            self._send(slot, text + slot.streamer.finish(), sink)
            self._finish(slot, "length", sink)
        elif text:
            self._send(slot, text, sink)

    def _send(self, slot: _Slot, text: str, sink: Sink) -> None:
        if text or slot.unsent:
            sink.delta(slot.handle, Piece(text, token_ids=tuple(slot.unsent)))
            slot.unsent.clear()

    def _finish(self, slot: _Slot, reason: Any, sink: Sink) -> None:
        if reason == "stop" and not slot.streamer.stopped:
            self._send(slot, slot.streamer.finish(), sink)
        now = time.monotonic()
        usage = Usage(prompt_tokens=len(slot.prompt), completion_tokens=slot.sampled)
        timings = Timings(
            queue_ms=(slot.started_at - slot.queued_at) * 1000,
            prefill_ms=(slot.first_token_at - slot.started_at) * 1000,
            decode_ms=(now - slot.first_token_at) * 1000,
        )
        self._release(slot)
        sink.end(slot.handle, reason, usage, timings)

    def close(self) -> None:
        """Free context and model; requests still here are forgotten."""
        for slot in [*self._answering, *self._prefilling, *self._pending]:
            self._release(slot)
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)
