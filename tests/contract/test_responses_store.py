"""Stored responses on a real bus: found by every gateway, after a restart, and never more than there is room for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, BusDown, LlmlbError, MessageTooLarge, NotFound
from llmlb.bus.messages.responses import StoredResponse
from llmlb.bus.streams import RESPONSES, ensure_stream
from llmlb.router.responses import ResponseStore
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer


def stored(name: str, text: str = "") -> StoredResponse:
    return StoredResponse(response_id=f"resp_{name}", input=f'["{text}"]', response="{}")


async def test_what_one_gateway_stores_another_one_finds(make_bus: MakeBus) -> None:
    one, other = ResponseStore(await make_bus()), ResponseStore(await make_bus())
    kept = stored("shared").model_copy(update={"previous": "resp_before", "key": "k"})
    await one.put(kept)
    assert await other.get("resp_shared") == kept
    await other.delete("resp_shared")
    for store in (one, other):
        with pytest.raises(NotFound):
            await store.get("resp_shared")
    with pytest.raises(NotFound):
        await one.delete("resp_shared")


@pytest.mark.parametrize("bad", ["", "a.b", "*", ">", "a b", "x" * 100])
async def test_an_id_that_is_none_is_not_found(make_bus: MakeBus, bad: str) -> None:
    store = ResponseStore(await make_bus())
    with pytest.raises(NotFound):
        await store.get(bad)
    with pytest.raises(NotFound):
        await store.delete(bad)


async def test_what_is_no_stored_response_is_not_taken_for_one(make_bus: MakeBus) -> None:
    bus = await make_bus()
    store = ResponseStore(bus)
    await store.put(stored("broken"))
    await bus.client.jetstream().publish(subjects.response("resp_broken"), b"nonsense")
    with pytest.raises(BadMessage):
        await store.get("resp_broken")


async def test_what_is_larger_than_a_message_is_refused(make_bus: MakeBus) -> None:
    with pytest.raises(MessageTooLarge):
        await ResponseStore(await make_bus()).put(stored("large", "x" * 9_000_000))


async def test_the_oldest_make_room_for_the_newest(make_bus: MakeBus, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "own").start()
    try:
        bus = await make_bus(url=server.url)
        await ensure_stream(bus.client, RESPONSES.evolve(max_bytes=50_000))
        store = ResponseStore(bus)
        for number in range(20):
            await store.put(stored(str(number), "x" * 5000))
        assert (await store.get("resp_19")).response_id == "resp_19"
        with pytest.raises(NotFound):
            await store.get("resp_0")
    finally:
        server.stop()


async def back(bus: Bus) -> None:
    async with asyncio.timeout(15):
        while not bus.connected:
            await asyncio.sleep(0.02)


async def test_they_survive_a_kill_of_the_bus_and_say_so_while_it_is_away(make_bus: MakeBus, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "own").start()
    try:
        bus = await make_bus(url=server.url)
        store = ResponseStore(bus)
        await store.put(stored("kept"))
        server.kill()
        async with asyncio.timeout(10):
            while bus.connected:
                await asyncio.sleep(0.02)
        with pytest.raises(LlmlbError):
            await store.get("resp_kept")
        with pytest.raises(BusDown):
            await store.put(stored("lost"))
        server.start()
        await back(bus)
        assert (await store.get("resp_kept")).response_id == "resp_kept"
        await store.put(stored("later"))
    finally:
        server.stop()


async def test_a_bus_that_lost_its_store_is_stored_to_again(make_bus: MakeBus, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "own").start()
    try:
        bus = await make_bus(url=server.url)
        store = ResponseStore(bus)
        await store.put(stored("one"))
        await bus.client.jetstream().delete_stream(subjects.STREAM_RESPONSES)
        await store.put(stored("two"))
        assert (await store.get("resp_two")).response_id == "resp_two"
        await bus.client.jetstream().delete_stream(subjects.STREAM_RESPONSES)
        with pytest.raises(NotFound):
            await store.get("resp_two")
    finally:
        server.stop()
