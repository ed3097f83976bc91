"""The vision part of a model, over llama.cpp's mtmd: prompts with images, and the projector that reads them."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmlb.bus.errors import InvalidRequest, ModelLoadFailed
from llmlb.node.engine.llama_context import Context
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.llama_native import can_offload, forget_errors, lib, log_callback, mtmd, said

LOOK_OPS = 16
"""Operations of an image's encoding between two looks: each look makes llama.cpp wait for the operation before it."""
_TEXT_CHUNK = 0


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
        mtmd.mtmd_helper_log_set(log_callback, ctypes.c_void_p(0))  # by default it writes prompts to stderr
        if missing := _missing_bytes(path):
            raise ModelLoadFailed(f"the projector of {model.name} ends {missing} bytes early", detail=path)
        forget_errors()
        self._context = mtmd.mtmd_init_from_file(path.encode(), model.handle, params)
        if not self._context:
            raise ModelLoadFailed(f"llama.cpp could not load the projector of {model.name}: {said()}", detail=path)
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
