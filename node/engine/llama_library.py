"""llama.cpp as Python objects: model, context, projector. With ``llama_grammar`` the only file that imports llama_cpp.

Thin: nothing here decides anything. Every call runs in the worker's main thread. Text that may hold anything goes in
and out as bytes; logits and vectors are numpy views into llama.cpp's memory, valid until the next decode.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Before the library is loaded, which reads it once. At a barrier libgomp spins for milliseconds before it sleeps; with
# any other process on the cores that costs a time slice a barrier. Measured on 2 cores with one other busy process:
# 8 tokens/s with the default, 16 with 300; with idle cores no difference (29 and 33).
os.environ.setdefault("GOMP_SPINCOUNT", "300")  # noqa: TID251  # written for a C library, not read

import llama_cpp.llama_cpp as lib
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
import numpy.typing as npt

from llmlb.bus.errors import InvalidRequest, ModelLoadFailed

Logits = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]

POOLING_NONE, POOLING_MEAN, POOLING_RANK = 0, 1, 4
"""Source: llama.h, enum llama_pooling_type."""
_PIECE_BYTES = 256
LOOK_OPS = 16
"""Operations of an image's encoding between two looks: each look makes llama.cpp wait for the operation before it."""
_LOG_ERROR = 4
_TEXT_CHUNK = 0

_last_errors: deque[str] = deque(maxlen=5)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's log: errors are kept for messages, the rest is dropped. Lives as long as the library calls it."""
    if level == _LOG_ERROR:
        _last_errors.append(text.decode(errors="replace").strip())


def _said() -> str:
    """llama.cpp's last words."""
    return "; ".join(_last_errors) or "no reason given"


def can_offload() -> bool:
    """Whether this build of llama.cpp can use a GPU."""
    return bool(lib.llama_supports_gpu_offload())


class Model:
    """A loaded model and its vocabulary."""

    def __init__(self, path: str, name: str, *, gpu_layers: int, progress: Callable[[float], None]) -> None:
        """Load. ``progress`` gets 0 to 1. Raises ModelLoadFailed with llama.cpp's last words."""
        _last_errors.clear()
        lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
        lib.llama_backend_init()

        @lib.llama_progress_callback  # type: ignore[untyped-decorator]
        def report(share: float, _: Any) -> bool:
            progress(share)
            return True

        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.progress_callback = report
        self.name = name
        self.handle = lib.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise ModelLoadFailed(f"llama.cpp could not load {name}: {_said()}", detail=path)
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.vocabulary = int(lib.llama_vocab_n_tokens(self.vocab))
        self.trained_context = int(lib.llama_model_n_ctx_train(self.handle))
        self.dimensions = int(lib.llama_model_n_embd_out(self.handle))
        self.removable = not (lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle))
        """False: a sequence can't be cut at a position, only forgotten as a whole."""
        self._bos = lib.llama_vocab_bos(self.vocab)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._specials: tuple[re.Pattern[str] | None, frozenset[str]] | None = None
        self._buffer = ctypes.create_string_buffer(_PIECE_BYTES)

    @property
    def bos(self) -> str:
        """The text of the begin token, "" where there is none."""
        return self.token_text(self._bos)

    @property
    def eos(self) -> str:
        """The text of the end token, "" where there is none."""
        return self.token_text(lib.llama_vocab_eos(self.vocab))

    def token_text(self, token: int) -> str:
        """A token as the vocabulary writes it; "" for a negative one."""
        text = lib.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """The tokens of a text. Raises InvalidRequest when it can't be tokenized."""
        data = text.encode("utf-8", "surrogatepass")
        size = len(data) + 8
        buffer = (lib.llama_token * size)()
        count = lib.llama_tokenize(self.vocab, data, len(data), buffer, size, add_special, parse_special)
        if count < 0:
            raise InvalidRequest("the prompt can't be turned into tokens")
        return list(buffer[:count])

    def cut(self, text: str, size: int) -> list[str]:
        """A rendered text in parts of ``size`` characters and more, whose tokens together are those of the whole.

        It is cut before control tokens only, where llama.cpp cuts it too before it looks at anything else; a token
        that takes the blanks before it is none of them. The first part alone is begun: the others get no begin token.
        """
        if len(text) < 2 * size or lib.llama_vocab_get_add_eos(self.vocab):
            return [text]
        if self._specials is None:
            self._specials = self._find_specials()
        pattern, cuts = self._specials
        starts = [0]
        for found in pattern.finditer(text) if pattern is not None else ():
            if found.start() - starts[-1] >= size and found.group() in cuts:
                starts.append(found.start())
        return [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]

    def _find_specials(self) -> tuple[re.Pattern[str] | None, frozenset[str]]:
        """What finds any special token in a text, the longest first; and those before which it may be cut."""
        texts, cuts = [], set()
        for token in range(self.vocabulary):
            kind = lib.llama_vocab_get_attr(self.vocab, token)
            if kind & (lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED) and self.token_text(token):
                texts.append(self.token_text(token))
                if kind & lib.LLAMA_TOKEN_ATTR_CONTROL and not kind & lib.LLAMA_TOKEN_ATTR_LSTRIP:
                    cuts.add(texts[-1])
        texts.sort(key=len, reverse=True)
        return (re.compile("|".join(map(re.escape, texts))) if texts else None), frozenset(cuts)

    def begun(self, text: str) -> bool:
        """Whether a chat template has written the begin token itself."""
        wants_bos = bool(lib.llama_vocab_get_add_bos(self.vocab)) and self._bos >= 0
        return wants_bos and text.startswith(self.bos)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token; control tokens are empty unless ``special``."""
        key = ~token if special else token
        piece = self._pieces.get(key)
        if piece is None:
            count = lib.llama_token_to_piece(self.vocab, token, self._buffer, _PIECE_BYTES, 0, special)
            if count < 0:
                buffer = ctypes.create_string_buffer(-count)
                count = lib.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
                piece = buffer.raw[:count]
            else:
                piece = self._buffer.raw[:count]
            self._pieces[key] = piece
        return piece

    def ends(self, token: int) -> bool:
        """Whether the token ends a turn."""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(lib.llama_vocab_is_eog(self.vocab, token))
        return known

    def close(self) -> None:
        """Free it; no context may be left."""
        lib.llama_model_free(self.handle)


@dataclass(frozen=True, slots=True)
class ContextSize:
    """How much room a context has. ``tokens``: of one sequence; ``batch``: tokens of one decode call."""

    sequences: int
    tokens: int
    batch: int
    threads: int


class Context:
    """The KV cache of some sequences, and the calls that fill it."""

    def __init__(self, model: Model, size: ContextSize, *, pooling: int | None = None) -> None:
        """``pooling``: this context makes vectors, not tokens. Raises ModelLoadFailed."""
        self._model = model
        params = lib.llama_context_default_params()
        params.n_ctx = size.tokens * size.sequences
        params.n_seq_max = size.sequences
        params.n_batch = params.n_ubatch = size.batch
        params.n_threads = params.n_threads_batch = size.threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.kv_unified = False
        params.no_perf = True
        if pooling is not None:
            params.embeddings = True
            params.pooling_type = pooling
            # On the CPU flash attention sums in half precision: components of SmolLM2's vectors are off by 0.005 then.
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        _last_errors.clear()
        self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            # Some models have no flash attention kernel for their head size.
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise ModelLoadFailed(
                f"llama.cpp could not make {size.sequences} slots of {size.tokens} tokens for {model.name}: {_said()}"
            )
        self.tokens = int(lib.llama_n_ctx_seq(self.handle))
        self.batch = size.batch
        self._memory = lib.llama_get_memory(self.handle)
        self._logits_at = 0
        self._logits: dict[int, npt.NDArray[np.float32]] = {}
        """Views of llama.cpp's logits at that address, by their rows; one for each number of rows there was."""
        self._make_batch(size.batch)

    def _make_batch(self, size: int) -> None:
        """One llama_batch over numpy arrays, filled anew for each call."""
        self._tokens = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._counts = np.ones(size, dtype=np.int32)
        self._sequences = np.zeros(size, dtype=np.int32)
        self._wanted = np.zeros(size, dtype=np.int8)
        each = ctypes.POINTER(lib.llama_seq_id)
        base = self._sequences.ctypes.data
        self._pointers = (each * size)(*(ctypes.cast(base + 4 * i, each) for i in range(size)))
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ctypes.POINTER(lib.llama_token)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(lib.llama_pos)),
            n_seq_id=self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=ctypes.cast(self._pointers, ctypes.POINTER(each)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    @property
    def has_memory(self) -> bool:
        """False for encoders (BERT …), which keep nothing between calls."""
        return bool(self._memory)

    @property
    def pooling(self) -> int:
        """How vectors of tokens become one."""
        return int(lib.llama_pooling_type(self.handle))

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> int:
        """One llama_decode of (token, position, sequence, wanted) rows, at most ``batch``; its return code."""
        count = len(rows)
        tokens, positions, sequences, wanted = zip(*rows, strict=True)
        self._tokens[:count], self._positions[:count] = tokens, positions
        self._sequences[:count], self._wanted[:count] = sequences, wanted
        self._batch.n_tokens = count
        return int(lib.llama_decode(self.handle, self._batch))

    def decode_run(self, tokens: Sequence[int], position: int, sequence: int, *, wanted: bool) -> int:
        """One llama_decode of tokens that follow each other; with ``wanted`` the last one's logits are kept."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = np.arange(position, position + count)
        self._sequences[:count] = sequence
        self._wanted[:count] = 0
        self._wanted[count - 1] = wanted
        self._batch.n_tokens = count
        return int(lib.llama_decode(self.handle, self._batch))

    def encode_all(self, tokens: Sequence[int], sequence: int) -> int:
        """As :meth:`decode_run` from position 0, with every token's output wanted: what pooling needs."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = np.arange(count)
        self._sequences[:count] = sequence
        self._wanted[:count] = 1
        self._batch.n_tokens = count
        return int(lib.llama_decode(self.handle, self._batch))

    def logits(self, count: int) -> npt.NDArray[np.float32]:
        """The logits of the ``count`` wanted rows of the last call, in their order: (count, vocabulary)."""
        pointer = lib.llama_get_logits(self.handle)
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_at:
            self._logits_at = address
            self._logits.clear()
        view = self._logits.get(count)
        if view is None:
            # Kept: numpy makes a new class for each look at memory of ctypes, which takes 80 to 160 µs.
            view = np.ctypeslib.as_array(pointer, (count, self._model.vocabulary))
            self._logits[count] = view
        return view

    def vector(self, sequence: int) -> Vector:
        """The pooled vector of a sequence, copied: (dimensions,)."""
        pointer = lib.llama_get_embeddings_seq(self.handle, sequence)
        return np.ctypeslib.as_array(pointer, (self._model.dimensions,)).copy()

    def abort_when(self, condition: Callable[[], bool]) -> None:
        """Ask ``condition`` between the operations of a call, and end the call with code 2 when it is true (CPU)."""

        @lib.ggml_abort_callback  # type: ignore[untyped-decorator]
        def ask(_: Any) -> bool:
            return condition()

        self._ask = ask  # llama.cpp holds on to it
        self._never = lib.ggml_abort_callback()

    def abortable(self, on: bool) -> None:
        """Whether the next calls ask. It costs a call into Python for each operation of the graph."""
        lib.llama_set_abort_callback(self.handle, self._ask if on else self._never, ctypes.c_void_p(0))

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop what a sequence holds from ``start`` on. False when the model can't cut there."""
        if not self._memory:
            return True
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def copy(self, source: int, target: int) -> None:
        """Make ``target`` hold what ``source`` holds. Copies the whole cache of the sequence."""
        lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def close(self) -> None:
        """Free it."""
        lib.llama_free(self.handle)


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """The place of one image (or a slice of it) in a prompt. ``positions``: how far the text after it moves."""

    handle: Any
    tokens: int
    positions: int


class Prompt:
    """A prompt of text and images, cut into runs of tokens and image chunks. Free it with :meth:`close`."""

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self.parts: list[list[int] | ImageChunk] = []
        for number in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, number)
            if mtmd.mtmd_input_chunk_get_type(chunk) == _TEXT_CHUNK:
                count = ctypes.c_size_t()
                tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                self.parts.append(list(tokens[: count.value]))
            else:
                size = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
                self.parts.append(ImageChunk(chunk, size, int(mtmd.mtmd_input_chunk_get_n_pos(chunk))))

    def close(self) -> None:
        """Free it; may be called twice."""
        if self._chunks:
            mtmd.mtmd_input_chunks_free(self._chunks)
            self._chunks = None


class _GgufParams(ctypes.Structure):
    """Source: gguf.h, ``struct gguf_init_params``."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]


def _missing_bytes(path: str) -> int:
    """How much is missing at the end of a GGUF file; 0 also when its header can't be read.

    llama.cpp looks for that in models, not in projectors: one cut in its last tensor loads, and encodes nonsense.
    """
    gguf = ctypes.CDLL(mtmd._libmtmd._name)  # the symbols of ggml-base, which it is linked with
    for name, kind in {
        "init_from_file": ctypes.c_void_p,
        "get_n_tensors": ctypes.c_int64,
        "get_data_offset": ctypes.c_size_t,
        "get_tensor_offset": ctypes.c_size_t,
        "get_tensor_size": ctypes.c_size_t,
    }.items():
        getattr(gguf, f"gguf_{name}").restype = kind
    handle = ctypes.c_void_p(gguf.gguf_init_from_file(path.encode(), _GgufParams(True, None)))
    if not handle:
        return 0
    last = ctypes.c_int64(gguf.gguf_get_n_tensors(handle) - 1)
    end = gguf.gguf_get_data_offset(handle)
    if last.value >= 0:
        end += gguf.gguf_get_tensor_offset(handle, last) + gguf.gguf_get_tensor_size(handle, last)
    gguf.gguf_free(handle)
    return max(0, int(end) - os.path.getsize(path))


class Projector:
    """The vision part of a model (mmproj file), over llama.cpp's mtmd."""

    def __init__(self, model: Model, path: str, *, threads: int, batch: int) -> None:
        """``batch``: tokens of one decode call at most. Raises ModelLoadFailed."""
        params = mtmd.mtmd_context_params_default()
        params.n_threads = threads
        params.print_timings = False
        params.warmup = False
        self.going_on: Callable[[], None] = lambda: None
        """Called now and then while an image is encoded, which may take minutes on a CPU."""
        self._look = self._looks()  # mtmd holds on to it
        if not can_offload():  # on a GPU it is soon over, and each look stops it
            params.cb_eval = self._look
        mtmd.mtmd_helper_log_set(_log_callback, ctypes.c_void_p(0))  # by default it writes prompts to stderr
        if missing := _missing_bytes(path):
            raise ModelLoadFailed(f"the projector of {model.name} ends {missing} bytes early", detail=path)
        _last_errors.clear()
        self._context = mtmd.mtmd_init_from_file(path.encode(), model.handle, params)
        if not self._context:
            raise ModelLoadFailed(f"llama.cpp could not load the projector of {model.name}: {_said()}", detail=path)
        self._model = model
        self._batch = batch
        self.vision = bool(mtmd.mtmd_support_vision(self._context))

    def _looks(self) -> Any:
        """What llama.cpp asks about each operation: whether it shall say when that is done. Each LOOK_OPS it shall."""
        asked = itertools.count(1)

        @lib.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]
        def look(_: Any, ask: bool, __: Any) -> bool:
            if ask:
                return next(asked) % LOOK_OPS == 0
            self.going_on()
            return True

        return look

    def prompt(self, pieces: Sequence[str | npt.NDArray[np.uint8]]) -> Prompt:
        """Tokens of the texts and RGB images (height, width, 3) of a rendered template. Raises InvalidRequest."""
        chunks = mtmd.mtmd_input_chunks_init()
        with contextlib.ExitStack() as temporary, contextlib.ExitStack() as undo:
            undo.callback(mtmd.mtmd_input_chunks_free, chunks)
            parts = [self._part(piece, temporary) for piece in pieces]
            each = ctypes.POINTER(mtmd.mtmd_input_part)
            array = (each * len(parts))(*(ctypes.pointer(part) for part in parts))
            begun = isinstance(pieces[0], str) and self._model.begun(pieces[0])
            code = mtmd.mtmd_tokenize_from_parts(self._context, chunks, array, len(parts), not begun)
            if code != 0:
                raise InvalidRequest(f"the images can't be prepared for this model (code {code})", param="messages")
            prompt = Prompt(chunks)
            self._check(prompt)
            undo.pop_all()
        return prompt

    @staticmethod
    def _part(piece: str | npt.NDArray[np.uint8], temporary: contextlib.ExitStack) -> mtmd.mtmd_input_part:
        part = mtmd.mtmd_input_part()
        if isinstance(piece, str):
            data = piece.encode("utf-8", "surrogatepass")
            text = mtmd.mtmd_input_text(text=data, text_len=len(data), add_special=False, parse_special=True)
            part.text = ctypes.pointer(text)  # ctypes keeps both alive
            return part
        pixels = np.ascontiguousarray(piece)
        pointer = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        part.bitmap = mtmd.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], pointer)  # a copy
        temporary.callback(mtmd.mtmd_bitmap_free, part.bitmap)
        return part

    def _check(self, prompt: Prompt) -> None:
        """What would end the process, or the request for no reason that can be seen. Raises InvalidRequest."""
        for part in prompt.parts:
            if isinstance(part, list):
                if min(part) < 0:
                    raise InvalidRequest("the projector has marks that the model does not know", param="messages")
            elif part.tokens > self._batch and mtmd.mtmd_decode_use_non_causal(self._context, part.handle):
                raise InvalidRequest(
                    f"an image of {part.tokens} tokens is too large: this model reads an image in one call, "
                    f"which takes {self._batch}",
                    param="messages",
                )

    def decode(self, context: Context, chunk: ImageChunk, position: int, sequence: int) -> int:
        """Encode one image and put it into a sequence at ``position``; 0 when it worked."""
        after = lib.llama_pos()
        return int(
            mtmd.mtmd_helper_eval_chunk_single(
                self._context,
                context.handle,
                chunk.handle,
                position,
                sequence,
                context.batch,
                False,
                ctypes.byref(after),
            )
        )

    def close(self) -> None:
        """Free it."""
        mtmd.mtmd_free(self._context)
