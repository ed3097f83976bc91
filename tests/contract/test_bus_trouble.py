"""A bus that is slow, dies, or carries what it should not: the connection goes on, and says what did not work."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.msg import Msg

from llmlb.bus import subjects, work_queue
from llmlb.bus.errors import BusDown
from llmlb.bus.messages.pulls import PullTask
from llmlb.bus.work_queue import WorkQueue
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """One of the test's own: started first, so that it ends last."""
    started = NatsServer(tmp_path / "nats").start()
    yield started
    started.stop()


async def test_a_subject_that_is_no_text_costs_its_own_message_and_nothing_else(
    server: NatsServer, make_bus: MakeBus, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await make_bus(url=server.url)
    heard: dict[str, list[bytes]] = {"usual": [], "straight": []}
    all_there = asyncio.Event()

    def note(how: str, data: bytes) -> None:
        heard[how].append(data)
        if all(got and got[-1] == b"last" for got in heard.values()):
            all_there.set()

    async def usual(msg: Msg) -> None:
        note("usual", msg.data)

    await bus.subscribe("odd.*.a", usual)
    await bus.subscribe_straight("odd.*.b", lambda subject, data, headers: note("straight", data))
    await bus.client.flush()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    for end in (b"a", b"b"):
        writer.write(b"PUB odd.x.%b 5\r\nfirst\r\nPUB odd.\xff.%b 3\r\nodd\r\n" % (end, end))
        writer.write(b"HPUB odd.\xff.%b 12 15\r\nNATS/1.0\r\n\r\nodd\r\n" % end)
        writer.write(b"PUB odd.x.%b 4\r\nlast\r\n" % end)
    async with asyncio.timeout(5):
        await all_there.wait()
    writer.close()
    assert heard["usual"] == [b"first", b"last"]
    assert [heard["straight"][0], heard["straight"][-1]] == [b"first", b"last"]
    assert bus.connected
    assert not bus.reconnects
    assert caplog.text.count("bus_message_unreadable") == 1


async def test_large_messages_that_wait_for_a_bus_that_dies_are_told_so_at_once(
    server: NatsServer, make_bus: MakeBus
) -> None:
    bus = await make_bus(url=server.url)
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    sending = [asyncio.ensure_future(bus.publish_bytes("x.y", b"a" * 7_000_000)) for _ in range(4)]
    await asyncio.wait(sending, timeout=0.3)
    assert not all(one.done() for one in sending), "they wait for a bus that takes nothing"
    server.kill()
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*sending, return_exceptions=True)
    assert any(isinstance(end, BusDown) for end in ends)
    assert all(end is None or isinstance(end, BusDown) for end in ends)


async def test_a_slow_answer_of_jetstream_does_not_end_a_work_queue(
    make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = work_queue.ensure_streams, 0

    async def slow_at_first(*args: Any, **kwargs: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise nats.errors.TimeoutError
        await real(*args, **kwargs)

    monkeypatch.setattr(work_queue, "ensure_streams", slow_at_first)
    monkeypatch.setattr(work_queue, "RETRY_S", 0.01)
    bus, node, got = await make_bus(), uuid.uuid4().hex, asyncio.Event()

    async def handle(data: bytes) -> None:
        got.set()

    queue = WorkQueue(
        bus,
        stream=subjects.STREAM_PULLS,
        subject=subjects.pull(node),
        consumer=subjects.pull_consumer(node),
        handler=handle,
    )
    queue.start()
    try:
        async with asyncio.timeout(10):
            while asked < 2:
                await asyncio.sleep(0.01)
            await queue.put(PullTask(task_id="0" * 16, model="a/b"))
            await got.wait()
    finally:
        await queue.close()
