"""Pulls as tasks on the bus, in trouble: full disks, a node that ends, a bus that forgets, a hub that is silent."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.js.errors import NotFoundError

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from tests.conftest import MakeBus
from tests.support.held_pull import DATA, FILE, REPO, held, pull_hub
from tests.support.hub import LocalHub
from tests.support.natsd import NatsServer
from tests.support.pulls import MIB, PullNode, eventually, gguf_bytes, pull_node


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with pull_hub() as made:
        yield made


@pytest.fixture
async def node(make_bus: MakeBus, tmp_path: Path, hub: LocalHub) -> AsyncIterator[PullNode]:
    async with pull_node(make_bus, tmp_path / "node", hub) as made:
        yield made


async def test_what_does_not_fit_on_the_disk_is_refused_before_the_first_byte(
    node: PullNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pulls._means.room._free = lambda folder: 1_000_000
    failed = await node.over((await node.rpc.pull(REPO)).task.task_id)
    assert failed.error is not None
    assert failed.error.reason == "out_of_disk"
    assert str(len(DATA)) in failed.error.message
    assert "1000000" in failed.error.message
    assert node.hub.served() == 0


async def test_running_pulls_count_for_the_room_of_the_next(node: PullNode) -> None:
    node.hub.add("own/other", {"other-Q4_K_M.gguf": gguf_bytes(2 * MIB, seed=3)})
    node.pulls._means.room._free = lambda folder: 6 * MIB + 1000
    first = await held(node, 64 * 1024)
    failed = await node.over((await node.rpc.pull("own/other")).task.task_id)
    assert failed.error is not None
    assert "other pulls" in failed.error.message
    node.hub.release()
    assert (await node.over(first)).status == "completed"


@pytest.mark.parametrize("freed", [True, False])
async def test_a_disk_that_fills_up_is_waited_for(node: PullNode, monkeypatch: pytest.MonkeyPatch, freed: bool) -> None:
    """The second file meets a disk that is full, until something is freed, or for good."""
    node.hub.add("own/two", {"a-00001-of-00002.gguf": DATA, "a-00002-of-00002.gguf": gguf_bytes(MIB, seed=9)})
    real, full = shutil.disk_usage, True

    def usage(path: Path) -> object:
        there = (node.models / ".pulling" / "own" / "two" / "a-00001-of-00002.gguf").exists()
        return type("Usage", (), {"free": 1000 if full and there else real(path).free})

    monkeypatch.setattr(shutil, "disk_usage", usage)
    node.pulls._means.room._wait_s = 30.0 if freed else 0.5
    node.pulls._means.room._poll_s = 0.05
    task_id = (await node.rpc.pull("own/two")).task.task_id
    if freed:
        waiting = await node.until(task_id, lambda task: "freed" in (task.note or ""))
        assert waiting.status == "downloading"
        full = False
    done = await node.over(task_id)
    if freed:
        assert done.status == "completed"
    else:
        assert done.error is not None
        assert done.error.reason == "out_of_disk"
        assert (node.models / ".pulling" / "own" / "two" / "a-00001-of-00002.gguf").exists(), "what came is kept"


async def test_a_node_that_ends_goes_on_when_it_is_back(make_bus: MakeBus, tmp_path: Path, hub: LocalHub) -> None:
    node_id = uuid.uuid4().hex
    first = await PullNode(tmp_path, node_id, hub).start(make_bus)
    done = (await first.rpc.pull(f"{REPO}:Q8_0")).task.task_id
    await first.over(done)
    task_id = await held(first)
    before = hub.served()
    await first.stop()
    assert await first.queued() == 1
    await first.bus.close()
    hub.release()
    second = await PullNode(tmp_path, node_id, hub).start(make_bus)
    try:
        assert (await second.over(task_id)).status == "completed"
        assert hub.served() - before < len(DATA)
        assert (await second.task(done)).name == REPO, "an earlier life's task is still known"
        assert second.names == [f"{REPO}:Q4_K_M", f"{REPO}:Q8_0"]
        await second.until_acked()
    finally:
        await second.stop()


@pytest.mark.parametrize("lost", ["while it is away", "while it runs"])
async def test_a_task_that_the_bus_has_lost_is_put_back(
    make_bus: MakeBus, tmp_path: Path, hub: LocalHub, lost: str
) -> None:
    """The stream of tasks is gone, what was told of the pull is still there."""
    server = NatsServer(tmp_path / "nats").start()
    node_id = uuid.uuid4().hex
    node = await PullNode(tmp_path, node_id, hub).start(make_bus, url=server.url)
    try:
        task_id = await held(node)
        done = (await node.rpc.pull("own/nothing")).task.task_id
        assert (await node.over(done)).status == "failed"
        js = node.bus.client.jetstream()
        if lost == "while it runs":
            await js.delete_stream(subjects.STREAM_PULLS)
            server.kill()
            server.start()
            await eventually(lambda: _is_back(node.bus))
        else:
            await node.agent.drain(1)
            await js.delete_stream(subjects.STREAM_PULLS)
            await node.agent.close()
            await node.bus.close()
            node = await PullNode(tmp_path, node_id, hub).start(make_bus, url=server.url)
        hub.release()
        assert (await node.over(task_id)).status == "completed"
        assert (node.models / REPO / FILE).read_bytes() == DATA
        await node.until_acked()
        assert (await node.task(done)).status == "failed", "what was over is not begun again"
    finally:
        await node.stop()
        await node.bus.close()
        server.stop()


async def _is_back(bus: Bus) -> bool:
    """The connection, and the stream: whoever needs it makes it."""
    if not bus.connected or bus.reconnects != 1:
        return False
    try:
        await bus.client.jetstream().stream_info(subjects.STREAM_PULLS)
    except NotFoundError:
        return False
    return True


@pytest.mark.parametrize("silent", ["the hub", "its answer where the file is"])
async def test_a_hub_that_is_silent_holds_nobody_up(
    make_bus: MakeBus, tmp_path: Path, hub: LocalHub, silent: str
) -> None:
    """A cancel is done and a node ends, though a thread still waits for the hub."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with pull_node(make_bus, tmp_path, hub) as node:
            access = node.pulls._means.hub
            task_id = await held(node)
            if silent == "the hub":
                access.endpoint = url
                waiting = (await node.rpc.pull("own/other")).task.task_id
                await node.until(waiting, lambda task: task.phase == "manifest")
            else:
                await node.rpc.cancel_task(task_id, purge=True)
                asked, locate = asyncio.Event(), access.locate
                loop = asyncio.get_running_loop()

                def locate_there(*args: object) -> object:
                    access.endpoint = url
                    loop.call_soon_threadsafe(asked.set)
                    return locate(*args)

                access.locate = locate_there
                waiting = (await node.rpc.pull(REPO)).task.task_id
                await asked.wait()
            async with asyncio.timeout(5):  # the hub has 10 s
                assert (await node.rpc.cancel_task(waiting, purge=False)).task.status == "cancelled"
                again = (await node.rpc.pull("own/other")).task.task_id
                await node.until(again, lambda task: task.phase == "manifest")
                await node.pulls.close()
            left = [thread for thread in threading.enumerate() if thread.name.startswith("llmlb")]
            assert all(thread.daemon for thread in left), "the interpreter waits for none of them"
