"""How much memory a model needs, where it fits, and what to warn of. Pure.

The rule, for the list of supported models and for whatever is registered:

    required = weights (all files) + KV cache of 4,096 tokens in F16 + 5 % of the weights + 512 MiB

4,096 tokens are the context of a model that says nothing else (``node/memory.py``); the last two are compute buffers,
the process, and what a load leaves free. Where the layout of the cache is not known (the hub tells only the number of
parameters), a token takes 45,000 x (parameters / 10^9)^0.47 bytes: 117 KiB at 8B and 324 KiB at 70B, where Llama 3 has
128 KiB and 320 KiB. Without the number of parameters, 4.8 bits a weight are assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONTEXT_TOKENS = 4096
OVERHEAD_BYTES = 512 * 1024 * 1024
OVERHEAD_SHARE = 0.05
KV_BYTES, KV_POWER = 45_000, 0.47
BITS_A_WEIGHT = 4.8

LARGE_BYTES = 50 * 1000**3
"""Source: gguf-catalog.md, edge cases: more than 50 GB is warned of."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has. None: not known. ``memory_bytes``: the larger of RAM and VRAM; ``engines`` empty: not told."""

    node_id: str
    name: str
    memory_bytes: int | None = None
    disk_free_bytes: int | None = None
    engines: tuple[str, ...] = ()

    def runs(self, engine: str) -> bool:
        return engine in (self.engines or ("llama.cpp",))


def kv_bytes_per_token(size_bytes: int, parameters: int | None = None) -> int:
    """Estimate, for a layout that is not known."""
    count = parameters or size_bytes * 8 / BITS_A_WEIGHT
    return int(KV_BYTES * math.pow(count / 1e9, KV_POWER))


def required_bytes(size_bytes: int, parameters: int | None = None, *, kv_per_token: int | None = None) -> int:
    """Memory to run a model of that size with one context of 4,096 tokens."""
    kv = kv_bytes_per_token(size_bytes, parameters) if kv_per_token is None else kv_per_token
    return round(size_bytes * (1 + OVERHEAD_SHARE)) + kv * CONTEXT_TOKENS + OVERHEAD_BYTES


def fits(room: Room, required: int) -> bool:
    """A node that tells nothing is given the benefit of the doubt."""
    return room.memory_bytes is None or room.memory_bytes >= required


def warnings(size_bytes: int, required: int, engine: str, rooms: Sequence[Room]) -> tuple[str, ...]:
    """What may go wrong with a model on the nodes it is meant for."""
    found = []
    if size_bytes > LARGE_BYTES:
        found.append(f"the model is large: {shown(size_bytes)} have to be downloaded by each node")
    if not rooms:
        return (*found, "no approved node is there yet: it is downloaded once there is one")
    if not any(room.runs(engine) for room in rooms):
        found.append(f"no node has the engine it needs ({engine})")
    if (most := _most(room.disk_free_bytes for room in rooms)) is not None and most < size_bytes:
        found.append(f"no node has room on its disk: {shown(size_bytes)} are needed, {shown(most)} are free at most")
    if (most := _most(room.memory_bytes for room in rooms)) is not None and most < required:
        found.append(f"no node has enough memory: about {shown(required)} are needed, the largest has {shown(most)}")
    return tuple(found)


def _most(values: Iterable[int | None]) -> int | None:
    """The largest; None when one of them is not known."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    return max(numbers) if numbers and len(numbers) == len(known) else None


def shown(count: int) -> str:
    """Bytes for people, in decimal units as the hub shows them."""
    for unit, factor in (("GB", 1000**3), ("MB", 1000**2), ("kB", 1000)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
