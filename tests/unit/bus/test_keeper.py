"""Who sees to it that there is a bus looks when there may be none, and sleeps while there is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmlb.bus import server as server_module
from llmlb.bus.server import BusKeeper
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background


class Watched(BusKeeper):
    """Starts nothing, and counts how often it would have looked whether to."""

    def __init__(self, home: Path) -> None:
        super().__init__(Settings.load({}, home=home, bus_url="nats://127.0.0.1:1"))
        self.connected = False
        self.asked = self.tried = 0

    def is_connected(self) -> bool:
        self.asked += 1
        return self.connected

    async def _start_if_silent(self) -> None:
        self.tried += 1

    async def tries(self, count: int) -> None:
        wanted = self.tried + count
        async with asyncio.timeout(20):
            while self.tried < wanted:
                await asyncio.sleep(0.001)


@pytest.fixture
async def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(server_module, "WATCH_INTERVAL_S", 0.002)
    it, background = Watched(tmp_path), Background("test")
    background.start(it.run(it.is_connected), "keeper")
    yield it
    await background.close()


async def test_while_there_is_a_connection_nobody_looks_and_when_it_goes_away_somebody_does(keeper: Watched) -> None:
    for _ in range(3):
        await keeper.tries(3)
        keeper.connected = True
        asked = -1
        async with asyncio.timeout(20):
            while asked != keeper.asked:
                asked = keeper.asked
                await asyncio.sleep(0.05)
        tried = keeper.tried
        keeper.connected = False
        keeper.look()
        await keeper.tries(1)
        assert keeper.tried > tried


async def test_a_connection_that_went_away_and_came_back_at_once_leaves_nobody_looking(keeper: Watched) -> None:
    await keeper.tries(1)
    keeper.connected = True
    keeper.look()
    keeper.look()
    asked = -1
    async with asyncio.timeout(20):
        while asked != keeper.asked:
            asked = keeper.asked
            await asyncio.sleep(0.05)
    keeper.connected = False
    keeper.look()
    await keeper.tries(2)
