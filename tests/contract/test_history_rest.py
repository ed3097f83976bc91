"""A history to which nothing comes sleeps, and misses nothing by it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.stream_reader import StreamReader
from llmlb.router import history as history_module
from llmlb.router.history import History
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer
from tests.support.records import NODE, record


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is done now and then is, except that a history at rest looks by itself: that comes never."""
    for name in ("EVERY_S", "RETRY_S", "LOOK_S"):
        monkeypatch.setattr(history_module, name, 0.02)
    monkeypatch.setattr(history_module, "REST_S", 3600.0)


@contextlib.asynccontextmanager
async def projecting(bus: Bus, path: Path) -> AsyncIterator[History]:
    history = History(bus, path)
    history.start()
    try:
        yield history
    finally:
        await history.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


def at_rest(history: History) -> Callable[[], bool]:
    return lambda: history._idle > history_module.IDLE_ROUNDS + 1


async def send(bus: Bus, request_id: str) -> None:
    """From anywhere: not by the process whose history it is."""
    await bus.client.publish(subjects.request_record(NODE), codec.encode(record(request_id=request_id)))
    await bus.client.flush()


async def test_a_record_that_comes_while_the_history_rests_is_written_each_time(
    bus: Bus, make_bus: MakeBus, server: NatsServer, tmp_path: Path
) -> None:
    other = await make_bus(url=server.url)
    async with projecting(bus, tmp_path / "router.db") as history:
        for number in range(1, 4):
            await until(at_rest(history))
            await send(other, f"a{number}")
            await until(lambda number=number: history.written == number)  # type: ignore[misc]
        assert history.last_hour == 3


async def test_a_history_at_rest_goes_on_when_the_bus_is_back(bus: Bus, server: NatsServer, tmp_path: Path) -> None:
    async with projecting(bus, tmp_path / "router.db") as history:
        await until(at_rest(history))
        server.kill()
        await until(lambda: not bus.connected)
        server.start()
        await until(lambda: bus.connected)
        await until(lambda: not at_rest(history)())
        await until(at_rest(history))
        await send(bus, "a")
        await until(lambda: history.written == 1)


async def test_a_database_that_is_found_broken_is_made_anew_though_the_history_rests(bus: Bus, tmp_path: Path) -> None:
    class Damaged(sqlite3.DatabaseError):
        sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    async with projecting(bus, tmp_path / "router.db") as history:
        await send(bus, "a")
        await until(lambda: history.written == 1)
        await until(at_rest(history))
        history.found_damaged(Damaged("as told"))
        assert not history.up
        await until(lambda: history.written == 2)
        await until(lambda: history.up)
    assert (tmp_path / "router.db.damaged").exists()


async def test_only_the_next_message_is_told_of_and_nothing_to_one_who_waits_no_more(bus: Bus) -> None:
    reader = StreamReader(bus, subjects.STREAM_REQUESTS, subjects.all_request_records())
    told: list[str] = []
    await reader.watch(lambda: told.append("first"))
    await bus.client.flush()
    await send(bus, "a")
    await until(lambda: told == ["first"])
    await send(bus, "b")
    await reader.watch(lambda: told.append("replaced"))
    await reader.watch(lambda: told.append("second"))
    await bus.client.flush()
    await send(bus, "c")
    await until(lambda: told == ["first", "second"])
    await reader.watch(lambda: told.append("given up"))
    await reader.unwatch()
    await reader.unwatch()
    await send(bus, "d")
    await bus.client.flush()
    assert told == ["first", "second"]
    assert [message.sequence for message in await reader.read(0, 10, 10**6)] == [1, 2, 3, 4]
