"""Large messages go out in parts, and arrive as nats-py would have sent them: whole, in order, with their reply."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from llmlb.bus.errors import BusDown, MessageTooLarge
from llmlb.bus.publishing import LARGE_BYTES
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer

SIZES = (0, 1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 65_536, 1_000_000)


async def test_messages_of_every_size_arrive_whole_and_in_order(make_bus: MakeBus, nats_url: str) -> None:
    sender, receiver = await make_bus(url=nats_url), await make_bus(url=nats_url)
    got: list[tuple[bytes, str]] = []
    everything = asyncio.Event()
    subject, sent = "test.publishing.order", []

    async def take(msg: Msg) -> None:
        got.append((msg.data, msg.reply))
        if len(got) == 3 * len(SIZES):
            everything.set()

    await receiver.subscribe(subject, take)
    await receiver.client.flush()
    for round_ in range(3):
        for size in SIZES:
            data, reply = (bytes([65 + round_]) * size), f"test.reply.{size}" if size % 2 else ""
            sent.append((data, reply))
            await sender.publish_bytes(subject, data, reply=reply)
    async with asyncio.timeout(20):
        await everything.wait()
    assert got == sent
    assert sender.client.stats["out_bytes"] >= sum(len(data) for data, _ in sent)


async def test_many_at_once_from_several_tasks_do_not_mix(make_bus: MakeBus, nats_url: str) -> None:
    bus = await make_bus(url=nats_url)
    got: list[bytes] = []
    everything = asyncio.Event()

    async def take(msg: Msg) -> None:
        got.append(msg.data)
        if len(got) == 200:
            everything.set()

    await bus.subscribe("test.publishing.mix", take)
    await bus.client.flush()

    async def send(number: int) -> None:
        for size in (10, 50_000):
            await bus.publish_bytes("test.publishing.mix", b"%03d" % number * size)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(send(number))
    async with asyncio.timeout(20):
        await everything.wait()
    assert all(data == data[:3] * (len(data) // 3) for data in got)
    assert sorted(len(data) for data in got) == [30] * 100 + [150_000] * 100


async def test_too_large_and_no_bus_are_told_apart(make_bus: MakeBus, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats").start()
    bus = await make_bus(url=server.url)
    with pytest.raises(MessageTooLarge):
        await bus.publish_bytes("test.publishing.large", b"x" * (bus.client.max_payload + 1))
    server.kill()
    async with asyncio.timeout(20):
        while bus.connected:
            await asyncio.sleep(0.01)
    with pytest.raises(BusDown):
        await bus.publish_bytes("test.publishing.gone", b"x" * 100_000)
    server.stop()


async def test_what_needs_no_waiting_is_sent_at_once_in_order_with_all_else(make_bus: MakeBus, nats_url: str) -> None:
    bus = await make_bus(url=nats_url)
    got: list[bytes] = []
    everything = asyncio.Event()

    async def take(msg: Msg) -> None:
        got.append(msg.data)
        if len(got) == 300:
            everything.set()

    await bus.subscribe("test.publishing.now", take)
    await bus.client.flush()
    for number in range(0, 300, 2):
        assert bus.publish_now("test.publishing.now", b"%d" % number)
        await bus.publish_bytes("test.publishing.now", b"%d" % (number + 1))
    async with asyncio.timeout(20):
        await everything.wait()
    assert got == [b"%d" % number for number in range(300)]


async def test_a_message_in_pieces_arrives_as_one(make_bus: MakeBus, nats_url: str) -> None:
    bus = await make_bus(url=nats_url)
    sent = [
        (b"%d" % at, *(b"%d" % piece * size for piece in range(at % 4)))
        for size in (0, 1, 3000, 90_000)
        for at in range(8)
    ]
    got: list[bytes] = []
    everything = asyncio.Event()

    async def take(msg: Msg) -> None:
        got.append(msg.data)
        if len(got) == len(sent):
            everything.set()

    await bus.subscribe("test.publishing.pieces", take)
    await bus.client.flush()
    for pieces in sent:
        if not bus.publish_now("test.publishing.pieces", *pieces):
            await bus.publish_bytes("test.publishing.pieces", b"".join(pieces))
    async with asyncio.timeout(20):
        await everything.wait()
    assert got == [b"".join(pieces) for pieces in sent]
    half = b"x" * (bus.client.max_payload // 2 + 1)
    assert not bus.publish_now("test.publishing.pieces", half, half)


async def test_nothing_is_sent_at_once_that_has_to_be_waited_for_or_is_refused(
    make_bus: MakeBus, nats_url: str
) -> None:
    bus = await make_bus(url=nats_url)
    most = bus.client.max_payload
    assert not bus.publish_now("test.publishing.refused", b"x" * (most + 1))
    with pytest.raises(MessageTooLarge):
        await bus.publish_bytes("test.publishing.refused", b"x" * (most + 1))
    while bus.publish_now("test.publishing.full", b"x" * 500_000):  # until nats-py's own limit of what is unsent
        pass
    assert 0 < bus.client.pending_data_size <= bus.client._max_pending_size
    await bus.publish_bytes("test.publishing.full", b"x" * 500_000)
    assert bus.publish_now("test.publishing.full", b"x")
    await bus.client.drain()
    assert not bus.publish_now("test.publishing.gone", b"x")
