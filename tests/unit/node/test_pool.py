"""What the pool decides about memory, without workers: the decisions are tested here, the doing in tests/faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmlb.bus.errors import OutOfMemory
from llmlb.bus.messages.models import ModelInfo
from llmlb.bus.messages.nodes import GpuReading
from llmlb.bus.settings import Settings
from llmlb.node.agent import _processor
from llmlb.node.engine import pool as pools
from llmlb.node.engine.pool import EnginePool
from llmlb.node.hardware import Memory
from llmlb.node.store.catalog import StoredModel

GIB = 1024**3
Make = Callable[[float, float | None], EnginePool]


def model(size_gib: float) -> StoredModel:
    """A made-up 8B model: 32 layers, 8 KV heads of 128, so 128 KiB of cache a token."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": "32",
        "llama.attention.head_count": "32",
        "llama.attention.head_count_kv": "8",
        "llama.embedding_length": "4096",
    }
    info = ModelInfo(
        name="a/b",
        format="GGUF",
        size_bytes=int(size_gib * GIB),
        architecture="llama",
        context_length=131072,
        source="Local",
        created_at=0,
    )
    return StoredModel(info, Path("/x"), None, None, None, metadata)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """A pool on a machine with so much free RAM and so much free VRAM, in GiB."""

    def make(ram: float, vram: float | None) -> EnginePool:
        async def nothing(*_: object) -> None: ...

        pool = EnginePool(Settings.load({}), on_reply=nothing, on_crash=nothing, on_change=lambda: None)
        monkeypatch.setattr(pools, "spare_memory", lambda: Memory(int(ram * GIB), int(ram * GIB)))
        monkeypatch.setattr(pools, "built_for_gpu", lambda: True)
        if vram is not None:
            gpu = GpuReading(name="X", memory_total_bytes=int(vram * GIB), memory_used_bytes=0)
            pool.gpus = lambda: (gpu,)
        return pool

    return make


@pytest.mark.parametrize(
    ("vram", "least", "most", "layers"),
    [(None, 0, 0, range(1)), (24, 1, 1, range(-1, 0)), (4, 0.3, 0.9, range(10, 29))],
    ids=["no GPU", "all on the GPU", "a part on the GPU"],
)
async def test_a_model_goes_where_there_is_room(
    make: Make, vram: float | None, least: float, most: float, layers: range
) -> None:
    pool = make(32, vram)
    size, share = await pool._make_room(model(4.5))
    assert size.slots == 4
    assert size.context_length >= 4096
    assert least <= share <= most
    assert pool._options(model(4.5), size, share).gpu_layers in layers


async def test_what_fits_nowhere_is_refused_with_both_numbers(make: Make) -> None:
    pool = make(8, 4)
    with pytest.raises(OutOfMemory, match=r"needs .* GiB \(\d+ bytes\).*bytes\) are free"):
        await pool._make_room(model(40))


@pytest.mark.parametrize(("share", "shown"), [(0, "100% CPU"), (1, "100% GPU"), (0.52, "48%/52% CPU/GPU")])
def test_where_a_model_is_in_words(share: float, shown: str) -> None:
    assert _processor(share) == shown
