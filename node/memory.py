"""Does a model fit, and with how many slots of what context? Pure arithmetic over what the file says.

Needed: the weights (the size of the files), the KV cache (slots x context x bytes a token), and room for computing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmlb.bus.errors import OutOfMemory

GIB = 1024**3
CONTEXTS = (32768, 16384, 8192, 4096, 2048, 1024, 512, 256)
UNKNOWN_CONTEXT = 4096
"""Of a model whose file does not say how long a context it was trained for."""
SLOTS = (4, 2, 1)
KV_SHARE = 0.25
"""Of what is free after the weights, the KV cache of an automatic size takes at most this."""
COMPUTE_BYTES = 256 * 1024 * 1024
"""A worker beyond weights and KV cache: Python, llama.cpp's compute buffers at 512 tokens a call."""
F16_BYTES = 2
KEPT_FREE = 0.02
"""Of all memory, what a load must leave free."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to load a model."""

    slots: int
    context_length: int
    needed_bytes: int


def kv_bytes_per_token(metadata: Mapping[str, str]) -> int:
    """Bytes of KV cache a token takes, from a GGUF header; 0 for a model without one, or one that does not say.

    Source: llama.cpp, ``llama_kv_cache``: for each layer, (key length + value length) x KV heads, F16. Layers that
    differ in heads are counted as if all had the most that the header names.
    """

    def number(key: str, default: int = 0) -> int:
        try:
            value = int(metadata[f"{architecture}.{key}"])
        except (KeyError, ValueError):
            return default
        return value if value >= 0 else default

    architecture = metadata.get("general.architecture", "")
    layers, heads = number("block_count"), number("attention.head_count")
    if not layers or not heads or "bert" in architecture:
        return 0
    kv_heads = number("attention.head_count_kv", heads)
    width = number("embedding_length") // heads
    key, value = number("attention.key_length", width), number("attention.value_length", width)
    return layers * min(kv_heads, heads) * (key + value) * F16_BYTES


def plan(
    name: str,
    *,
    weight_bytes: int,
    kv_bytes_per_token: int,
    trained_context: int | None,
    free_bytes: int | None,
    slots: int | None = None,
    context_length: int | None = None,
) -> Plan:
    """Slots and context for a model; what is given is kept. ``free_bytes`` None: not known, everything fits.

    Raises OutOfMemory, with the needed and the free bytes, when even the smallest does not fit.
    """
    longest = trained_context or context_length or UNKNOWN_CONTEXT
    contexts = [min(context_length, longest)] if context_length else [one for one in CONTEXTS if one <= longest]
    contexts = contexts or [longest]
    counts = [slots] if slots else list(SLOTS)
    base = weight_bytes + COMPUTE_BYTES

    def need(count: int, context: int) -> int:
        return base + count * context * kv_bytes_per_token

    if free_bytes is None:
        # As if there were enough for a middling context.
        context = contexts[0] if context_length else min(contexts[0], 4096)
        return Plan(counts[0], context, need(counts[0], context))
    budget = (free_bytes - base) * KV_SHARE  # negative: not even a model without a cache fits
    for least in (4096, 0):
        for count in counts:
            for context in contexts:
                if context >= min(least, longest) and count * context * kv_bytes_per_token <= budget:
                    return Plan(count, context, need(count, context))
    count, context = counts[-1], contexts[-1]
    needed = need(count, context)
    if needed > free_bytes:
        raise OutOfMemory(
            f"{name} needs {needed / GIB:.1f} GiB ({needed} bytes) with {count} slots of {context} tokens; "
            f"{free_bytes / GIB:.1f} GiB ({free_bytes} bytes) are free"
        )
    return Plan(count, context, needed)
