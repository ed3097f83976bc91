"""What was refused while the bus was away is on record once it is back, with the id its client gave it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmlb.bus import codec, subjects
from llmlb.bus.errors import BusDown, Conflict
from llmlb.bus.messages.infer import InferRequest
from llmlb.bus.messages.requests import RequestRecord
from llmlb.bus.stream_reader import StreamReader
from llmlb.bus.streams import ensure_streams
from llmlb.router.call import Call
from llmlb.router.dispatch import Dispatcher
from llmlb.router.fleet import Fleet
from llmlb.router.mirror import Mirror
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_request_refused_because_the_bus_is_away_is_recorded_when_it_is_back(
    server: NatsServer, make_bus: MakeBus
) -> None:
    bus = await make_bus(url=server.url)
    await ensure_streams(bus.client)
    fleet = Fleet(bus)
    dispatcher = Dispatcher(bus, fleet)
    await fleet.start()
    await dispatcher.start()
    try:
        server.kill()
        await until(lambda: not bus.connected)
        for name in ("one", "two"):
            with pytest.raises(BusDown):
                async for _ in dispatcher.stream(
                    InferRequest(request_id=name, model="m", kind="chat"), Call(client_request_id="mine", path="/v1/x")
                ):
                    pass
        server.start()
        await until(lambda: bus.connected)
        reader = StreamReader(bus, subjects.STREAM_REQUESTS, subjects.all_request_records())
        found: list[RequestRecord] = []
        async with asyncio.timeout(20):
            while len(found) < 2:
                found = [codec.decode_as(RequestRecord, one.data) for one in await reader.read(0, 10, 1 << 20)]
                await asyncio.sleep(0.05)
        assert [(one.request_id, one.status, one.reason, one.client_request_id, one.path) for one in found] == [
            (name, "error", "bus_unavailable", "mine", "/v1/x") for name in ("one", "two")
        ]
    finally:
        await dispatcher.close()
        await fleet.close()


async def test_a_change_that_refuses_itself_with_a_conflict_is_not_tried_again(make_bus: MakeBus) -> None:
    mirror = Mirror(await make_bus(), subjects.BUCKET_SETTINGS, lambda key, value: None)
    await mirror.start()
    tried = 0

    def change(old: bytes | None) -> bytes | None:
        nonlocal tried
        tried += 1
        raise Conflict("there is one of that name already")

    try:
        with pytest.raises(Conflict, match="of that name"):
            await mirror.edit("some.key", change)
        assert tried == 1
    finally:
        await mirror.close()
