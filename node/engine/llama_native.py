"""llama.cpp's library: how it is loaded, and what it says.

The only file that imports llama_cpp. Those that use it from here are thin: ``llama_model``, ``llama_context`` and
``llama_vision`` decide nothing. Every call runs in the worker's main thread. Text that may hold anything goes in and
out as bytes; logits and vectors are numpy views into llama.cpp's memory, valid until the next decode.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

# Before the library is loaded, which reads it once. At a barrier libgomp spins for milliseconds before it sleeps; with
# any other process on the cores that costs a time slice a barrier. Measured on 2 cores with one other busy process:
# 8 tokens/s with the default, 16 with 300; with idle cores no difference (29 and 33).
os.environ.setdefault("GOMP_SPINCOUNT", "300")  # noqa: TID251  # written for a C library, not read

import llama_cpp.llama_cpp as lib
import llama_cpp.llama_grammar as converter
import llama_cpp.mtmd_cpp as mtmd

__all__ = ["can_offload", "converter", "forget_errors", "lib", "log_callback", "mtmd", "said"]

_LOG_ERROR = 4

_last_errors: deque[str] = deque(maxlen=5)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def log_callback(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's log: errors are kept for messages, the rest is dropped. Lives as long as the library calls it."""
    if level == _LOG_ERROR:
        _last_errors.append(text.decode(errors="replace").strip())


def said() -> str:
    """llama.cpp's last words since :func:`forget_errors`."""
    return "; ".join(_last_errors) or "no reason given"


def forget_errors() -> None:
    """What it says next belongs to something new."""
    _last_errors.clear()


def can_offload() -> bool:
    """Whether this build of llama.cpp can use a GPU."""
    return bool(lib.llama_supports_gpu_offload())
