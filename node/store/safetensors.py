"""Read what Safetensors files and the ``config.json`` beside them say of a model, bounded and without trusting it.

Source of the format: https://github.com/huggingface/safetensors, "Format": 8 bytes length, little-endian, then JSON.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llmlb.bus.errors import ModelLoadFailed
from llmlb.node.store.files import open_file
from llmlb.node.store.gguf import MAX_PARAMETERS

MAX_HEADER_BYTES = 32 * 1024 * 1024
"""The format allows 100 MB; the largest of real files have below 5 MiB, and parsed JSON takes ten times its size."""
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 16
MAX_CONTEXT = 100_000_000
"""A larger one is a placeholder: transformers writes 1e30 for "no limit"."""

_LENGTH = struct.Struct("<Q")
_PACKED = frozenset({"I32", "U8", "I8", "U32", "I64"})
"""Types of weights of fewer bits put together: their number is not that of the weights."""
_CONTEXT_KEYS = (
    *("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "max_seq_length"),
    *("seq_length", "n_ctx", "model_max_length", "max_target_positions"),
)
"""In this order. Source: vLLM, ``_get_and_verify_max_len``."""
_ALREADY_SCALED = frozenset({"llama3", "longrope", "su", "mrope", "default", "proportional"})
"""Kinds of rope scaling whose config.json gives the length after scaling. Source: as above."""


@dataclass(frozen=True, slots=True)
class SafetensorsInfo:
    """Numbers in the tensors of one file, and of those the ones of whole-number types."""

    parameters: int
    packed: int


def read_safetensors(path: Path) -> SafetensorsInfo:
    """The header of one file. Raises ModelLoadFailed, naming the file and what is wrong with it."""

    def bad(what: str) -> ModelLoadFailed:
        return ModelLoadFailed(f"{path.name} is not a readable Safetensors file: {what}", detail=str(path))

    try:
        with open_file(path) as file:
            size = path.stat().st_size
            start = file.read(_LENGTH.size)
            if len(start) != _LENGTH.size:
                raise bad("it ends early")
            (length,) = _LENGTH.unpack(start)
            if length > MAX_HEADER_BYTES:
                raise bad(f"a header of {length} bytes")
            if length > size - _LENGTH.size:
                raise bad("it ends early")
            header = orjson.loads(file.read(length))
    except OSError as error:
        raise ModelLoadFailed(f"{path.name} can't be read: {error.strerror}", detail=str(path)) from error
    except ValueError as error:
        raise bad("its header is not JSON") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise bad("its header is not an object of tensors")
    parameters = packed = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        count = _count(tensor)
        if count is None:
            raise bad(f"the tensor {name[:80]!r} has no shape")
        parameters += count
        packed += count if str(tensor.get("dtype")) in _PACKED else 0
    return SafetensorsInfo(parameters, packed)


def _count(tensor: Any) -> int | None:
    shape = tensor.get("shape") if isinstance(tensor, dict) else None
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        return None
    return math.prod(shape) if all(type(each) is int and each >= 0 for each in shape) else None


def parameters_of(infos: Iterable[SafetensorsInfo], config: Mapping[str, Any]) -> int | None:
    """Weights of a model. None when a quantization packs several into one number: the headers can't tell."""
    parts = list(infos)
    if _object(config, "quantization_config") and any(part.packed for part in parts):
        return None
    total = sum(part.parameters for part in parts)
    return total if 0 < total <= MAX_PARAMETERS else None


def context_length_of(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int | None:
    """Tokens a model was made for: config.json's, scaled as its rope says; else the tokenizer's."""
    for part in (config, *(_object(config, key) for key in ("text_config", "llm_config", "language_config"))):
        found = next((length for key in _CONTEXT_KEYS if (length := _length(part.get(key))) is not None), None)
        if found is not None:
            return _scaled(found, part, str(config.get("model_type") or ""))
    return _length(tokenizer.get("model_max_length"))


def _length(value: Any) -> int | None:
    """A length that can be one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 < value <= MAX_CONTEXT else None


def _scaled(length: int, config: Mapping[str, Any], model_type: str) -> int:
    rope = _object(config, "rope_scaling") or _object(config, "rope_parameters")
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    factor = rope.get("factor")
    if kind in _ALREADY_SCALED or "gemma3" in model_type or not isinstance(factor, int | float):
        return length
    if kind == "yarn":
        length = _length(rope.get("original_max_position_embeddings")) or length
    scaled = length * factor
    return int(scaled) if 0 < scaled <= MAX_CONTEXT else length


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """``AWQ-4bit``, ``FP8``, or the type of the weights: ``BF16``."""
    quantization = _object(config, "quantization_config")
    if method := quantization.get("quant_method"):
        bits = quantization.get("bits")
        return str(method)[:40].upper() + (f"-{bits}bit" if type(bits) is int else "")
    for part in (config, _object(config, "text_config")):
        if dtype := part.get("torch_dtype") or part.get("dtype"):
            known = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
            return known.get(str(dtype), str(dtype)[:40])
    return None


def architecture_of(config: Mapping[str, Any]) -> str:
    """``llama``, or the first class that config.json names."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return str(config.get("model_type") or first or "unknown")[:100]


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}
