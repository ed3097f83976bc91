"""A bucket in memory costs its bus next to nothing while nothing changes, and misses nothing for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llmlb.bus.connection import Bus
from llmlb.bus.subjects import BUCKET_SETTINGS
from llmlb.router import mirror as mirror_module
from llmlb.router.mirror import Mirror
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer

KEYS = 40


@pytest.fixture
async def bus(tmp_path: Path, make_bus: MakeBus) -> AsyncIterator[Bus]:
    """A server of its own: others change the same bucket on the run's."""
    server = NatsServer(tmp_path / "nats").start()
    yield await make_bus(url=server.url)
    server.stop()


@pytest.fixture
async def mirror(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mirror]:
    monkeypatch.setattr(mirror_module, "RESYNC_S", 0.1)
    made = Mirror(bus, BUCKET_SETTINGS, lambda key, value: None)
    await made.start()
    for number in range(KEYS):
        await made.edit(f"k{number}", lambda old: b"first")
    yield made
    await made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def looks(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Return when it has looked so often from here on."""
    real, done = mirror._load, asyncio.Event()
    left = count

    async def load() -> None:
        nonlocal left
        await real()
        left -= 1
        if left <= 0:
            done.set()

    monkeypatch.setattr(mirror, "_load", load)
    async with asyncio.timeout(10):
        await done.wait()
    monkeypatch.setattr(mirror, "_load", real)


async def test_a_bucket_that_does_not_change_costs_a_question_a_look(
    bus: Bus, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    await looks(mirror, monkeypatch, 2)
    before = bus.client.stats["out_msgs"]
    await looks(mirror, monkeypatch, 5)
    assert bus.client.stats["out_msgs"] - before <= 10


async def test_what_was_not_heard_is_found_by_the_next_look(
    bus: Bus, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, make_bus: MakeBus
) -> None:
    await looks(mirror, monkeypatch, 2)
    assert mirror._subscription is not None
    await mirror._subscription.unsubscribe()
    other = Mirror(await make_bus(url=bus.settings.bus_url), BUCKET_SETTINGS, lambda key, value: None)
    await other.start()
    await other.edit("k1", lambda old: b"second")
    await other.edit("k2", lambda old: None)
    await other.edit("new", lambda old: b"new")
    before = bus.client.stats["out_msgs"]
    await until(lambda: mirror.get("new") == b"new")
    assert (mirror.get("k1"), mirror.get("k2"), mirror.get("k3")) == (b"second", None, b"first")
    assert bus.client.stats["out_msgs"] - before < KEYS, "only what changed was read"
    await other.close()


@pytest.mark.parametrize("changes", [1, 74])
async def test_any_number_of_changes_is_found(
    bus: Bus, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, make_bus: MakeBus, changes: int
) -> None:
    await looks(mirror, monkeypatch, 2)
    assert mirror._subscription is not None
    await mirror._subscription.unsubscribe()
    other = Mirror(await make_bus(url=bus.settings.bus_url), BUCKET_SETTINGS, lambda key, value: None)
    await other.start()
    for number in range(changes):
        await other.edit("k1", lambda old, number=number: b"%d" % number)  # type: ignore[misc]
    await until(lambda: mirror.get("k1") == b"%d" % (changes - 1))
    await other.close()


async def test_a_bucket_that_was_made_anew_is_filled_again(
    bus: Bus, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    await looks(mirror, monkeypatch, 2)
    await bus.client.jetstream().delete_key_value(BUCKET_SETTINGS)

    async def again() -> int:
        info = await bus.client.jetstream().stream_info(f"KV_{BUCKET_SETTINGS}")
        return int(info.state.messages)

    await until(lambda: mirror._made != "")
    async with asyncio.timeout(10):
        while True:
            try:
                if await again() == KEYS:
                    break
            except Exception:  # noqa: BLE001 - it is not there yet
                pass
            await asyncio.sleep(0.05)
    assert mirror.get("k1") == b"first"
