"""What is under way is looked at several times a second; an idle process sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmlb.bus.tasks import Background
from llmlb.router import lookout as lookout_module
from llmlb.router.lookout import Lookout


class Looks:
    """Counts, and can be waited for."""

    def __init__(self) -> None:
        self.count = 0
        self.lookout = Lookout(self.look)

    def look(self, _: float) -> None:
        self.count += 1

    async def more(self, count: int) -> None:
        wanted = self.count + count
        async with asyncio.timeout(20):
            while self.count < wanted:
                await asyncio.sleep(0.001)


@pytest.fixture
async def looks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Looks]:
    monkeypatch.setattr(lookout_module, "TICK_S", 0.002)
    monkeypatch.setattr(lookout_module, "REST_S", 3600.0)
    background, it = Background("test"), Looks()
    background.start(it.lookout.run(), "look")
    yield it
    await background.close()


async def still(looks: Looks) -> int:
    """Wait until nobody looks any more: with nothing under way that is so after one more look. How many there were."""
    async with asyncio.timeout(20):
        while looks.lookout._stir.is_set():
            await asyncio.sleep(0.001)
    return looks.count


async def test_nobody_looks_while_nothing_is_under_way(looks: Looks) -> None:
    await asyncio.sleep(0)
    assert await still(looks) == 0
    looks.lookout.began()
    await looks.more(3)
    looks.lookout.ended()
    count = await still(looks)
    for _ in range(20):
        await asyncio.sleep(0.002)
    assert looks.count == count


async def test_what_begins_after_a_rest_is_looked_at_until_the_last_has_ended(looks: Looks) -> None:
    for _ in range(3):
        looks.lookout.began()
        looks.lookout.began()
        await looks.more(2)
        looks.lookout.ended()
        await looks.more(2)
        looks.lookout.ended()
        await still(looks)


async def test_what_ends_before_the_first_look_is_looked_at_once(looks: Looks) -> None:
    looks.lookout.began()
    looks.lookout.ended()
    await looks.more(1)
    await still(looks)


async def test_even_a_process_at_rest_looks_now_and_then(monkeypatch: pytest.MonkeyPatch, looks: Looks) -> None:
    monkeypatch.setattr(lookout_module, "REST_S", 0.002)
    looks.lookout.began()  # ends the rest that began before
    looks.lookout.ended()
    await looks.more(3)
