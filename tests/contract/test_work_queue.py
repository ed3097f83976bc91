"""The work queue: an item is there until it is done, whatever dies. A real server, killed and started again."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmlb.bus import codec, subjects, work_queue
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusDown
from llmlb.bus.messages.pulls import PullTask
from llmlb.bus.work_queue import WorkQueue
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer
from tests.support.pulls import eventually


class Worker:
    """A queue whose items wait for ``go``, and are counted."""

    def __init__(self, bus: Bus, node: str) -> None:
        self.bus, self.node = bus, node
        self.begun: list[str] = []
        self.done: list[str] = []
        self.go = asyncio.Event()
        self.failures = 0
        self.queue = WorkQueue(
            bus,
            stream=subjects.STREAM_PULLS,
            subject=subjects.pull(node),
            consumer=subjects.pull_consumer(node),
            handler=self._handle,
        )
        self.queue.start()

    async def _handle(self, data: bytes) -> None:
        model = codec.decode_as(PullTask, data).model
        self.begun.append(model)
        await self.go.wait()
        if self.failures:
            self.failures -= 1
            raise RuntimeError("as told")
        self.done.append(model)

    async def put(self, model: str) -> None:
        await self.queue.put(PullTask(task_id="0" * 16, model=model))

    async def stored(self) -> int:
        info = await self.bus.client.jetstream().stream_info(
            subjects.STREAM_PULLS, subjects_filter=subjects.pull(self.node)
        )
        return sum((info.state.subjects or {}).values())

    async def until_begun(self, count: int) -> None:
        await eventually(lambda: _true(len(self.begun) >= count))

    async def until_empty(self) -> None:
        async def empty() -> bool:
            return self.bus.connected and await self.stored() == 0

        await eventually(empty)


async def _true(value: bool) -> bool:
    return value


@pytest.fixture
def node() -> str:
    return uuid.uuid4().hex


@pytest.fixture
async def worker(make_bus: MakeBus, node: str) -> AsyncIterator[Worker]:
    made = Worker(await make_bus(), node)
    yield made
    await made.queue.close()


async def test_an_item_stays_until_its_handler_has_returned(worker: Worker) -> None:
    await worker.put("a")
    await worker.until_begun(1)
    assert await worker.stored() == 1
    assert worker.queue.working == 1
    worker.go.set()
    await worker.until_empty()
    assert (worker.begun, worker.done) == (["a"], ["a"])


async def test_many_are_worked_at_once_and_the_rest_waits_on_the_bus(worker: Worker) -> None:
    for number in range(work_queue.MAX_ITEMS + 5):
        await worker.put(str(number))
    await worker.until_begun(work_queue.MAX_ITEMS)
    assert worker.queue.working == work_queue.MAX_ITEMS
    worker.go.set()
    await worker.until_empty()
    assert sorted(map(int, worker.done)) == list(range(work_queue.MAX_ITEMS + 5))


async def test_work_that_takes_longer_than_the_ack_wait_is_not_given_again(
    make_bus: MakeBus, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_queue, "ACK_WAIT_S", 1.0)
    monkeypatch.setattr(work_queue, "IN_PROGRESS_S", 0.2)
    worker = Worker(await make_bus(), node)
    await worker.put("long")
    await worker.until_begun(1)
    await asyncio.sleep(2.5)  # more than twice the time after which it would come again
    info = await worker.bus.client.jetstream().consumer_info(subjects.STREAM_PULLS, subjects.pull_consumer(node))
    assert (info.num_redelivered or 0) == 0
    worker.go.set()
    await worker.until_empty()
    assert worker.begun == ["long"]
    await worker.queue.close()


async def test_a_handler_that_breaks_gets_its_item_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "NAK_S", 0.1)
    worker.failures = 1
    worker.go.set()
    await worker.put("a")
    await worker.until_empty()
    assert (worker.begun, worker.done) == (["a", "a"], ["a"])


async def test_what_was_not_done_when_the_queue_was_closed_comes_to_the_next(make_bus: MakeBus, node: str) -> None:
    first = Worker(await make_bus(), node)
    await first.put("a")
    await first.until_begun(1)
    await first.queue.close()
    await first.queue.close()
    second = Worker(await make_bus(), node)
    await second.until_begun(1)
    async with asyncio.timeout(10):
        await second.queue.wait_all_taken()
    second.go.set()
    await second.until_empty()
    assert (first.done, second.done) == ([], ["a"])
    await second.queue.close()


@pytest.mark.parametrize("lost", ["nothing", "consumer", "stream"])
async def test_a_server_that_is_killed_takes_no_item_along(
    tmp_path: Path, make_bus: MakeBus, node: str, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away an item ends: its ack has nowhere to go, so it comes again, and is not worked again."""
    monkeypatch.setattr(work_queue, "ACK_WAIT_S", 1.0)
    monkeypatch.setattr(work_queue, "IN_PROGRESS_S", 0.3)
    server = NatsServer(tmp_path / "own").start()
    worker = Worker(await make_bus(url=server.url), node)
    try:
        await worker.put("before")
        await worker.until_begun(1)
        server.kill()
        await eventually(lambda: _true(not worker.bus.connected))
        worker.go.set()
        await eventually(lambda: _true(worker.done == ["before"]))
        with pytest.raises(BusDown):
            await worker.put("lost")
        server.start()
        await eventually(lambda: _true(worker.bus.connected))
        js = worker.bus.client.jetstream()
        if lost == "consumer":
            await eventually(lambda: _is_there(worker))
            await js.delete_consumer(subjects.STREAM_PULLS, subjects.pull_consumer(node))
        elif lost == "stream":
            await js.delete_stream(subjects.STREAM_PULLS)
        await worker.put("after")
        await worker.until_empty()
        assert worker.done == ["before", "after"]
    finally:
        await worker.queue.close()
        await worker.bus.close()
        server.stop()


async def _is_there(worker: Worker) -> bool:
    found = await worker.bus.client.jetstream().consumers_info(subjects.STREAM_PULLS)
    return len(found) == 1
