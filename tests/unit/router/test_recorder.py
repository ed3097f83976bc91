"""The recorder keeps what the bus can't take now, up to a number and a size."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from llmlb.bus import codec
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusDown
from llmlb.bus.messages.infer import InferRequest
from llmlb.bus.messages.requests import RequestRecord
from llmlb.router import recorder as recorder_module
from llmlb.router.call import Call
from llmlb.router.journey import Journey
from llmlb.router.record import Record
from llmlb.router.recorder import Recorder


class Away:
    """A bus that comes back when a test says so."""

    def __init__(self) -> None:
        self.connected = False
        self.stored: list[bytes] = []
        self.subjects: list[str] = []
        self.whole = asyncio.Event()

    def publish_now(self, subject: str, data: bytes) -> bool:
        return False

    async def publish_bytes(self, subject: str, data: bytes, **_: Any) -> None:
        if not self.connected:
            raise BusDown("away")
        self.subjects.append(subject)
        self.stored.append(data)

    async def publish_bytes_stored(self, subject: str, data: bytes, **_: Any) -> None:
        await self.publish_bytes(subject, data)
        self.whole.set()


def record(number: int, body: str = "") -> Record:
    request = InferRequest(request_id=str(number), model="m", kind="chat")
    return Journey(request, Call(body=body), "g").record()


def ids(bus: Away) -> list[str]:
    return [codec.decode_as(RequestRecord, data).request_id for data in bus.stored]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "EVERY_S", 0.0)
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.01)


async def sent(bus: Away, recorder: Recorder) -> None:
    bus.connected = True
    recorder.start()
    async with asyncio.timeout(10):
        while recorder.waiting_bytes:
            bus.whole.clear()
            await bus.whole.wait()
            await asyncio.sleep(0)
    await recorder.close()


async def test_what_waited_for_the_bus_arrives_in_order() -> None:
    bus = Away()
    recorder = Recorder(cast(Bus, bus))
    for number in range(450):
        recorder.put(record(number))
    await sent(bus, recorder)
    assert ids(bus) == [str(number) for number in range(450)]


async def test_beyond_its_bytes_new_records_are_dropped_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "WAITING_BYTES_MAX", 10_000)
    bus = Away()
    recorder = Recorder(cast(Bus, bus))
    for number in range(50):
        recorder.put(record(number, body="x" * 2000))
    assert recorder.waiting_bytes <= 10_000
    assert recorder.dropped == 47
    recorder.put(record(99))  # small enough for the room that is left
    await sent(bus, recorder)
    assert ids(bus) == ["0", "1", "2", "99"]
    assert caplog.text.count("request_records_dropped") == 1
    assert recorder.waiting_bytes == 0


async def test_beyond_its_number_new_records_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "WAITING_MAX", 3)
    bus = Away()
    recorder = Recorder(cast(Bus, bus))
    for number in range(5):
        recorder.put(record(number))
    await sent(bus, recorder)
    assert ids(bus) == ["0", "1", "2"]


async def test_what_is_large_goes_out_at_once_and_what_is_small_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "EVERY_S", 3600.0)
    monkeypatch.setattr(recorder_module, "SOON_BYTES", 10_000)
    bus = Away()
    bus.connected = True
    recorder = Recorder(cast(Bus, bus))
    recorder.start()
    recorder.put(record(0))
    for _ in range(20):
        await asyncio.sleep(0)
    assert ids(bus) == []
    for number in range(1, 7):
        recorder.put(record(number, body="x" * 2000))
    async with asyncio.timeout(10):
        await bus.whole.wait()
    assert ids(bus) == [str(number) for number in range(7)]
    recorder.put(record(7))  # it waits for more again
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(bus.stored) == 7
    await recorder.close()
    assert ids(bus)[-1] == "7"


async def test_a_whole_batch_goes_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "EVERY_S", 3600.0)
    bus = Away()
    bus.connected = True
    recorder = Recorder(cast(Bus, bus))
    recorder.start()
    for number in range(2 * recorder_module.BATCH):
        recorder.put(record(number))
    async with asyncio.timeout(10):
        while recorder.waiting_bytes:
            bus.whole.clear()
            await bus.whole.wait()
            await asyncio.sleep(0)
    await recorder.close()
    assert ids(bus) == [str(number) for number in range(2 * recorder_module.BATCH)]


async def test_a_record_that_can_not_be_written_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    bus = Away()
    recorder = Recorder(cast(Bus, bus))
    recorder.put(record(1, body="\ud800"))
    recorder.put(record(2))
    await sent(bus, recorder)
    assert ids(bus) == ["2"]
    assert "request_record_unwritable request=1" in caplog.text


class Slow(Away):
    """A bus whose stream confirms a batch when a test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.connected = True
        self.asked = asyncio.Event()
        self.confirm = asyncio.Event()

    async def publish_bytes_stored(self, subject: str, data: bytes, **_: Any) -> None:
        self.asked.set()
        await self.confirm.wait()
        await super().publish_bytes_stored(subject, data)


@pytest.mark.parametrize("number", [1, 3, 450])
async def test_closing_while_a_batch_is_not_confirmed_sends_everything_and_raises_nothing(number: int) -> None:
    bus = Slow()
    recorder = Recorder(cast(Bus, bus))
    for one in range(number):
        recorder.put(record(one))
    recorder.start()
    async with asyncio.timeout(5):
        await bus.asked.wait()
        closing = asyncio.ensure_future(recorder.close())
        await asyncio.sleep(0)
        recorder.put(record(number))  # a request that is cut off while the process ends
        bus.confirm.set()
        await closing
    assert set(ids(bus)) == {str(one) for one in range(number + 1)}
    assert recorder.waiting_bytes == 0
