"""A context of llama.cpp: the KV cache of some sequences, and the calls that fill it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmlb.bus.errors import ModelLoadFailed
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.llama_native import forget_errors, lib, said

Vector = npt.NDArray[np.float32]

POOLING_NONE, POOLING_MEAN, POOLING_RANK = 0, 1, 4
"""Source: llama.h, enum llama_pooling_type."""


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
        forget_errors()
        self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            # Some models have no flash attention kernel for their head size.
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise ModelLoadFailed(
                f"llama.cpp could not make {size.sequences} slots of {size.tokens} tokens for {model.name}: {said()}"
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
