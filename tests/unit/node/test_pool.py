"""What the pool decides about memory, without workers: the decisions are tested here, the doing in tests/faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from llmlb.bus.errors import Conflict, ModelLoadFailed, OutOfMemory
from llmlb.bus.messages.models import ModelInfo
from llmlb.bus.messages.nodes import GpuReading
from llmlb.bus.settings import Settings
from llmlb.node.engine import pool as pools
from llmlb.node.engine import room as rooms
from llmlb.node.engine.interface import LoadOptions
from llmlb.node.engine.pool import EnginePool
from llmlb.node.engine.pool_interface import Loaded
from llmlb.node.engine.process import EngineProcess, Listener
from llmlb.node.hardware import Memory
from llmlb.node.lifecycle import Lifecycle
from llmlb.node.running import _processor
from llmlb.node.store.catalog import StoredModel

GIB = 1024**3
Make = Callable[[float, float | None], EnginePool]


def model(size_gib: float, name: str = "a/b", layers: str = "32") -> StoredModel:
    """A made-up 8B model: 32 layers, 8 KV heads of 128, so 128 KiB of cache a token."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.attention.head_count": "32",
        "llama.attention.head_count_kv": "8",
        "llama.embedding_length": "4096",
    }
    info = ModelInfo(
        name=name,
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
        monkeypatch.setattr(rooms, "spare_memory", lambda: Memory(int(ram * GIB), int(ram * GIB)))
        monkeypatch.setattr(rooms, "built_for_gpu", lambda: True)
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
    loaded = Loaded(model(4.5))
    size = await pool._make_room(loaded)
    share = loaded.gpu_share
    assert size.slots == 4
    assert size.context_length >= 4096
    assert least <= share <= most
    assert pool._options(model(4.5), size, share).gpu_layers in layers


async def test_what_fits_nowhere_is_refused_with_both_numbers(make: Make) -> None:
    pool = make(8, 4)
    with pytest.raises(OutOfMemory, match=r"needs .* GiB \(\d+ bytes\).*bytes\) are free"):
        await pool._make_room(Loaded(model(40)))


class FakeProcess(EngineProcess):
    """A worker that is loaded as soon as the test says so; it takes no memory."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self.slots, self.context_length = 1, 10
        self.loading = asyncio.Event()
        self.may_load = asyncio.Event()

    async def start(self, format: str, options: LoadOptions, *, timeout_s: float) -> None:
        self.loading.set()
        await self.may_load.wait()

    async def stop(self) -> None: ...


async def test_a_model_that_loads_takes_its_memory_from_the_beginning(make: Make) -> None:
    """Three at once, each of 6 of 10 GiB: what one is given, no other one gets."""
    pool = make(10, None)
    made: list[FakeProcess] = []

    def process(listener: Listener) -> EngineProcess:
        made.append(FakeProcess(listener))
        return made[-1]

    pool.make_process = process
    async with asyncio.timeout(10):
        waiting = [asyncio.ensure_future(pool.ready(model(6, name))) for name in "abc"]  # awaited below
        first, second = await asyncio.gather(*waiting[1:], return_exceptions=True)
        assert isinstance(first, OutOfMemory)
        assert isinstance(second, OutOfMemory)
        made[0].may_load.set()
        assert (await waiting[0]).name == "a"
        assert not any(process.loading.is_set() for process in made[1:])
        # Once loaded it is the system that says what is free: here as much as before.
        made_later = asyncio.ensure_future(pool.ready(model(6, "d")))  # awaited below
        while len(made) < 4:
            await asyncio.sleep(0)
        made[3].may_load.set()
        await made_later
    await pool.close()


class Unstartable(FakeProcess):
    async def start(self, format: str, options: LoadOptions, *, timeout_s: float) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")


class Broken(FakeProcess):
    async def start(self, format: str, options: LoadOptions, *, timeout_s: float) -> None:
        raise KeyError("something else")


@pytest.mark.parametrize("process", [Unstartable, Broken])
async def test_a_load_that_fails_in_whatever_way_is_heard_of(make: Make, process: type[FakeProcess]) -> None:
    pool = make(10, None)
    pool.make_process = process
    async with asyncio.timeout(10):
        with pytest.raises(ModelLoadFailed, match="a/b could not be loaded"):
            await pool.ready(model(1))
        with pytest.raises(Conflict, match="not loaded"):
            await pool.stop("a/b")
        with pytest.raises(ModelLoadFailed, match="a/b could not be loaded"):  # it can be tried again
            await pool.ready(model(1))
    assert pool.loaded() == []
    await pool.close()


async def test_a_number_of_layers_that_is_none_is_as_if_the_file_did_not_say(make: Make) -> None:
    pool = make(32, 4)
    odd = Loaded(model(4.5, layers="12.5"))
    assert pool._options(odd.model, await pool._make_room(odd), odd.gpu_share).gpu_layers == -1


@pytest.mark.parametrize(("share", "shown"), [(0, "100% CPU"), (1, "100% GPU"), (0.52, "48%/52% CPU/GPU")])
def test_where_a_model_is_in_words(share: float, shown: str) -> None:
    assert _processor(share) == shown


async def idle(pool: EnginePool, name: str) -> Loaded:
    """A model that is in memory, with nothing on it."""
    made: list[FakeProcess] = []

    def process(listener: Listener) -> EngineProcess:
        made.append(FakeProcess(listener))
        made[-1].may_load.set()
        return made[-1]

    pool.make_process = process
    loaded = await pool.ready(model(1, name))
    pool.release(loaded)
    return loaded


async def gone(pool: EnginePool, name: str) -> None:
    async with asyncio.timeout(20):
        while pool.state(name) != "absent":
            await asyncio.sleep(0.001)


async def test_an_idle_model_goes_when_a_reading_says_that_memory_is_short(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the next look by itself is away: the heartbeat has just read the memory."""
    monkeypatch.setattr(pools, "TICK_S", 3600.0)
    pool = make(32, None)
    pool.open()
    await idle(pool, "a")
    for there in (Memory(32 * GIB, 16 * GIB), None):
        pool.look(there)
        await asyncio.sleep(0.02)
        assert pool.state("a") == "ready"
    pool.look(Memory(32 * GIB, GIB))
    await gone(pool, "a")
    await pool.close()


async def test_a_pool_that_nobody_reads_for_sees_itself_that_memory_is_short(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "TICK_S", 0.01)
    monkeypatch.setattr(pools, "TICK_LEAST_S", 0.01)
    pool = make(32, None)
    pool.open()
    await idle(pool, "a")
    monkeypatch.setattr(rooms, "spare_memory", lambda: Memory(32 * GIB, GIB))
    await gone(pool, "a")
    await pool.close()


async def test_a_model_goes_when_its_keep_alive_is_over_and_the_next_one_too(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is until the next look: a pool without models sleeps until one comes."""
    monkeypatch.setattr(pools, "TICK_S", 3600.0)
    monkeypatch.setattr(pools, "TICK_LEAST_S", 0.01)
    pool = make(32, None)
    pool._life = Lifecycle(0.05)
    pool.open()
    for name in "ab":
        await idle(pool, name)
        await gone(pool, name)
    await pool.close()


async def test_a_busy_worker_that_says_nothing_is_ended_at_the_stall_limit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "TICK_S", 3600.0)
    monkeypatch.setattr(pools, "TICK_LEAST_S", 0.01)
    pool = make(32, None)
    pool._settings = Settings.load({"LLMLB_STALL_TIMEOUT": "0.05"})
    pool.open()
    loaded = await idle(pool, "a")
    ended = asyncio.Event()
    assert loaded.process is not None
    monkeypatch.setattr(loaded.process, "kill", ended.set)
    loaded.handles.add(1)
    pool.look(None)
    async with asyncio.timeout(20):
        await ended.wait()
    await pool.close()
