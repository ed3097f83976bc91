"""Whether a model fits beside the others: what memory is free, less what those that load now will take.

A worker that loads takes its memory little by little, so what is free says nothing of what it still needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from llmlb.bus.errors import OutOfMemory
from llmlb.bus.messages.nodes import GpuReading
from llmlb.bus.settings import Settings
from llmlb.node.hardware import Memory, built_for_gpu, process_memory_bytes, spare_memory, spare_vram
from llmlb.node.memory import KEPT_FREE, Plan, kv_bytes_per_token, plan
from llmlb.node.store.catalog import StoredModel

PRESSURE = 0.9
"""Share of the memory in use from which on idle models are unloaded, least recently used first."""


class Guest(Protocol):
    """A model in memory, or on its way there."""

    @property
    def memory_pid(self) -> int | None:
        """Whose memory it takes; None before there is a process."""

    @property
    def expected(self) -> Plan | None:
        """What it will take, while it loads; None once it has."""

    gpu_share: float


class Room:
    """The memory of this machine, for models. ``gpus``: the GPUs as last read; ``guests``: the models that are here."""

    def __init__(
        self,
        settings: Settings,
        gpus: Callable[[], Sequence[GpuReading]],
        guests: Callable[[], Iterable[Guest]],
    ) -> None:
        self._settings = settings
        self._gpus = gpus
        self._guests = guests

    def memory(self, there: Memory | None = None) -> Memory | None:
        """RAM for models: in all, and free now. None where the system does not say. ``there``: as was just read."""
        limit = self._settings.memory_limit_bytes
        there = there or spare_memory()
        if limit is None:
            return there
        used = sum(_resident(guest) for guest in self._guests())
        free = max(0, limit - used)
        return Memory(limit, free if there is None else min(free, there.free_bytes))

    def short(self, there: Memory | None = None) -> bool:
        """Whether so little is left that an idle model had better go. ``there``: the RAM, as was just read."""
        on_gpu = any(guest.gpu_share for guest in self._guests())
        kinds = [self.memory(there), spare_vram(self._gpus()) if on_gpu else None]
        return any(memory and memory.free_bytes < (1 - PRESSURE) * memory.total_bytes for memory in kinds)

    def fit(self, model: StoredModel) -> tuple[Plan, float]:
        """Slots and context that fit, and the share that goes onto GPUs. Raises OutOfMemory.

        All in VRAM if it fits there, else what fits there and the rest in RAM. A context that the model asks for is
        taken where the operator set none and it fits.
        """
        memory = _less(self.memory(), sum(map(_awaited, self._guests())))
        vram = _less(self._vram(model), sum(map(_awaited_on_gpu, self._guests())))
        if vram is None:
            return self._sized(model, memory), 0.0
        with contextlib.suppress(OutOfMemory):
            return self._sized(model, vram), 1.0
        if model.info.format == "GGUF" and memory is not None:
            both = Memory(memory.total_bytes + vram.total_bytes, memory.free_bytes + vram.free_bytes)
            size = self._sized(model, both)
            return size, min(1.0, PRESSURE * vram.free_bytes / size.needed_bytes)
        return self._sized(model, vram), 1.0

    def _vram(self, model: StoredModel) -> Memory | None:
        """VRAM for a model; None when there is none, or the engine can't use it."""
        if model.info.format == "GGUF" and not built_for_gpu():
            return None
        return spare_vram(self._gpus())

    def _sized(self, model: StoredModel, memory: Memory | None) -> Plan:
        wished = None if self._settings.context_length else model.defaults.context_length
        if wished is not None:
            with contextlib.suppress(OutOfMemory):
                return self._plan(model, memory, wished)
        return self._plan(model, memory, self._settings.context_length)

    def _plan(self, model: StoredModel, memory: Memory | None, context_length: int | None) -> Plan:
        return plan(
            model.info.name,
            weight_bytes=model.info.size_bytes,
            kv_bytes_per_token=kv_bytes_per_token(model.metadata),
            trained_context=model.info.context_length,
            free_bytes=None if memory is None else int(memory.free_bytes - KEPT_FREE * memory.total_bytes),
            slots=self._settings.num_parallel,
            context_length=context_length,
        )


def layers_of(model: StoredModel) -> int:
    """Layers, as the header of a GGUF file has them; 0 where it does not say, or says no number."""
    try:
        return max(0, int(model.metadata.get(f"{model.info.architecture}.block_count", "0")))
    except ValueError:
        return 0


def _resident(guest: Guest) -> int:
    return 0 if guest.memory_pid is None else process_memory_bytes(guest.memory_pid) or 0


def _awaited(guest: Guest) -> int:
    """Bytes of RAM that it has yet to take."""
    if guest.expected is None:
        return 0
    return max(0, int(guest.expected.needed_bytes * (1 - guest.gpu_share)) - _resident(guest))


def _awaited_on_gpu(guest: Guest) -> int:
    """Bytes of VRAM that it may have yet to take; how much it has taken is not known."""
    return 0 if guest.expected is None else int(guest.expected.needed_bytes * guest.gpu_share)


def _less(memory: Memory | None, taken: int) -> Memory | None:
    return None if memory is None else Memory(memory.total_bytes, max(0, memory.free_bytes - taken))
