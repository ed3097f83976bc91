"""What a node tells of the models in its memory."""

from __future__ import annotations

from collections.abc import Sequence

from llmlb.bus.messages.models import RunningList, RunningModel
from llmlb.bus.messages.nodes import GpuReading
from llmlb.node.engine.pool_interface import Loaded, Pool
from llmlb.node.hardware import process_memory_bytes


def running_list(pool: Pool, gpus: Sequence[GpuReading]) -> RunningList:
    """Those that are loaded or on their way there, and those that crashed too often, by name."""
    used = [100 * gpu.memory_used_bytes / gpu.memory_total_bytes for gpu in gpus if gpu.memory_total_bytes]
    hottest = [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]
    readings = (sum(used) / len(used) if used else None, max(hottest) if hottest else None)
    rows = [_row(pool, loaded, *readings) for loaded in pool.loaded()]
    rows += [RunningModel.of_failed(name, why) for name, why in pool.failed().items()]
    return RunningList(models=tuple(sorted(rows, key=lambda row: row.name)))


def _row(pool: Pool, loaded: Loaded, vram_percent: float | None, temperature_c: float | None) -> RunningModel:
    on_it, slots, pid = len(loaded.handles), loaded.slots, loaded.pid
    stopping = pool.state(loaded.name) == "stopping"
    return RunningModel(
        name=loaded.name,
        instance=loaded.instance,
        state="loading" if not slots else "stopping" if stopping else "ready",
        size_bytes=(process_memory_bytes(pid) or 0) if pid is not None else 0,
        processor=_processor(loaded.gpu_share),
        slots=slots,
        running=min(on_it, slots),
        queued=max(0, on_it - slots),
        context_length=loaded.context_length,
        expires_in_s=pool.expires_in_s(loaded.name),
        percent=loaded.percent if not slots else 100,
        same_answer=loaded.capabilities is not None and loaded.capabilities.same_answer,
        vram_percent=vram_percent,
        gpu_temperature_c=temperature_c,
    )


def _processor(gpu_share: float) -> str:
    """``100% CPU``, ``100% GPU`` or ``48%/52% CPU/GPU``: where a model is."""
    gpu = round(100 * gpu_share)
    return "100% CPU" if not gpu else "100% GPU" if gpu == 100 else f"{100 - gpu}%/{gpu}% CPU/GPU"
