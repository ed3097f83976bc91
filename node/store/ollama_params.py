"""The ``params`` layer of an Ollama model as defaults for requests. Pure.

Source of the names: ollama, ``docs/modelfile``, "Valid Parameters and Values".
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from llmlb.bus.messages.infer import Sampling

MAX_STOP = 64
MAX_STOP_CHARS = 1_000

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "num_predict": "max_tokens",
}
_OTHERS = frozenset({"stop", "num_ctx"})
_OF_THE_RUNNER = frozenset({"num_gpu", "num_thread", "num_batch", "main_gpu", "low_vram", "use_mmap", "use_mlock"})
"""How Ollama runs a model: llmlb decides that itself."""

Read = tuple[dict[str, float | int], tuple[str, ...], int | None, list[str]]


def read_params(params: dict[str, Any]) -> Read:
    """(fields of Sampling, stop texts, context length, what could not be used and why)."""
    sampling: dict[str, float | int] = {}
    odd: list[str] = []
    for name, value in params.items():
        field = _SAMPLING.get(name)
        if field is None:
            if name not in _OTHERS | _OF_THE_RUNNER:
                odd.append(f"the parameter {name[:60]!r} is not used")
        elif name == "num_predict" and type(value) is int and value < 1:
            continue  # -1: as long as it gets
        elif type(value) in (int, float) and _valid(field, value):
            sampling[field] = value
        else:
            odd.append(f"the parameter {name} is out of range and not used")
    stop = params.get("stop")
    texts = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    usable = tuple(text for text in texts if isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARS)[:MAX_STOP]
    context = params.get("num_ctx")
    return sampling, usable, context if type(context) is int and context > 0 else None, odd


def _valid(field: str, value: float | int) -> bool:
    try:
        Sampling.model_validate({field: value})
    except ValidationError:
        return False
    return True
