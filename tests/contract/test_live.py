"""Events over the WebSocket of a gateway, on a real bus: order, resuming, slow readers, filters, several routers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nats.js.errors
import pytest

from llmlb.bus import codec, subjects
from llmlb.bus.messages.events import NodeStateChanged
from llmlb.bus.messages.hub import CancelClusterTask, DeleteModel, DownloadModel
from llmlb.router.gateway import ws
from llmlb.router.live_teller import is_behind
from tests.conftest import MakeBus
from tests.support.hub_catalog import CatalogHub
from tests.support.live import Listener, LiveRig, listener, live_rig
from tests.support.model_hub import until
from tests.support.model_rig import NAME, REPO
from tests.support.pulls import MIB, PullNode, pull_node

Make = Callable[..., Any]


@pytest.fixture
async def make(make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str) -> AsyncIterator[Make]:
    """Routers on one bus."""
    made: list[LiveRig] = []

    async def one(**limits: Any) -> LiveRig:
        rig = await live_rig(make_bus, url, hub, tmp_path / f"router{len(made)}", **limits)
        made.append(rig)
        return rig

    yield one
    for rig in made:
        await rig.stop()


@pytest.fixture
async def router(make: Make) -> LiveRig:
    rig: LiveRig = await make()
    return rig


async def stored(rig: LiveRig) -> list[tuple[int, Any]]:
    """Every event of the stream."""
    js, found = rig.bus.client.jetstream(), []
    info = await js.stream_info(subjects.STREAM_EVENTS)
    for seq in range(1, info.state.last_seq + 1):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            found.append((seq, codec.decode((await js.get_msg(subjects.STREAM_EVENTS, seq)).data or b"")))
    return found


async def test_a_models_life_is_told_in_order_and_each_thing_once(router: LiveRig, node: PullNode) -> None:
    node.hub.budget = 0
    async with listener(router.address) as client:
        await router.register(REPO, registered_by="ann", aliases=("short",))
        said = await client.of("model_registered", limit_s=10)
        data = said["data"]
        assert (data["model"], data["registered_by"], data["aliases"]) == (NAME, "ann", ["short"])
        assert (data["size_bytes"], data["quantization"], data["nodes"]) == (MIB, "Q4_K_M", None)
        node.hub.release()
        ready = await client.of("model_ready")
        assert (ready["data"]["model"], ready["data"]["node_id"]) == (NAME, node.node_id)
        await router.hub.delete(DeleteModel(model=NAME))
        gone = await client.of("model_removed")
        assert gone["data"]["model"] == NAME
        kinds = [m["type"] for m in client.got if m["type"].startswith("model_")]
        assert kinds == ["model_registered", "model_ready", "model_removed"]
        tasks = [m["data"]["task"]["status"] for m in client.got if m["type"] == "task_changed" and m["id"]]
        assert tasks[-1] == "completed"
        assert len(tasks) == len(set(tasks))
        assert client.ids == sorted(set(client.ids))


async def test_two_routers_have_the_same_ids_and_tell_each_change_once(
    make: Make, make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str
) -> None:
    one, other = await make(), await make()
    async with (
        pull_node(make_bus, tmp_path / "node", hub, url=url) as node,
        listener(one.address) as here,
        listener(other.address) as there,
    ):
        await until(lambda: one.fleet.members.state(node.node_id) == "online")
        await one.register(REPO)
        for client in (here, there):
            await client.of("model_ready")
        await until(lambda: other.hub.registry.all())
        await other.hub.delete(DeleteModel(model=NAME))
        for client in (here, there):
            await client.of("model_removed")
        kept = [{m["id"]: m["type"] for m in c.got if m["id"] and m["type"] != "hello"} for c in (here, there)]
        shared = kept[0].keys() & kept[1].keys()
        assert len(shared) >= 5
        assert {key: kept[0][key] for key in shared} == {key: kept[1][key] for key in shared}
        assert here.hello["data"]["stream"] == there.hello["data"]["stream"]
        await one.settled()
        await other.settled()
        changes = [_what(event) for _, event in await stored(one)]
        assert len(changes) == len(set(changes)), changes
        await node.stop()
        await node.bus.close()


def _what(event: Any) -> tuple[Any, ...]:
    fields = event.model_dump(exclude={"sent_at", "task", "reason"})
    task = getattr(event, "task", None)
    return (*(str(value) for value in fields.values()), task and (task.status, task.started_at))


async def test_whoever_comes_back_gets_what_it_missed_and_nothing_twice(make: Make, router: LiveRig) -> None:
    async with listener(router.address, types="node_changed") as client:
        for number in range(5):
            router.say(number)
        assert await client.names(5) == [f"n{number}" for number in range(5)]
        last, stream = client.got[2]["id"], client.hello["data"]["stream"]
    later = await make()
    for rig in (router, later):
        async with listener(rig.address, types="node_changed", after=last, stream=stream) as again:
            assert again.hello["id"] == last
            assert await again.names(3) == ["n2", "n3", "n4"]
            rig.say(5)
            assert await again.names(1) == ["n5"]
        last, stream = again.got[0]["id"], again.hello["data"]["stream"]


@pytest.mark.parametrize(
    ("query", "reason"),
    [({"after": 1}, "too old"), ({"after": 10**6}, "unknown"), ({"after": 39, "stream": "x"}, "another stream")],
)
async def test_what_is_not_there_any_more_is_said_and_the_client_goes_on(
    make: Make, query: dict[str, Any], reason: str
) -> None:
    rig = await make(kept=10)
    for number in range(40):
        rig.say(number)
    await until(lambda: rig.live.log.last >= 40)
    async with listener(rig.address, **query) as client:
        reset = await client.next()
        assert (client.hello["id"], reset["type"], reset["data"]["reason"]) == (None, "reset", reason)
        assert reset["id"] == rig.live.log.last
        assert "/v0/models/hub" in reset["data"]["read"]
        rig.say(40)
        assert await client.names(1) == ["n40"]
    async with listener(rig.address, after=rig.live.log.last) as client:
        rig.say(41)
        assert await client.names(1) == ["n41"], "no reset where nothing is missing"


async def test_a_reader_that_does_not_read_is_dropped_and_told_why(make: Make) -> None:
    rig = await make(most_behind=50)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        sock.connect(("127.0.0.1", rig.server.port))
        options = {"sock": sock, "max_queue": 1}
        async with listener(rig.address, options=options) as slow, listener(rig.address) as good:
            slow.socket.transport.pause_reading()
            sent = 0
            async with asyncio.timeout(60):
                while len(rig.live.feeds) == 2:
                    for _ in range(20):
                        rig.say(sent, "x" * 4000)
                        sent += 1
                    await good.names(20)
            slow.socket.transport.resume_reading()
            code, reason = await slow.end()
            assert code == 4008
            assert "slow" in reason
            names = [m["data"]["name"] for m in slow.got if m["type"] == "node_changed"]
            assert names == [f"n{number}" for number in range(len(names))], "what it has is whole"
            last = slow.got[-1]["id"]
    async with listener(rig.address, after=last) as again:
        assert await again.names(sent - len(names)) == [f"n{number}" for number in range(len(names), sent)]


async def test_two_hundred_clients_hear_the_same(router: LiveRig) -> None:
    async with AsyncExitStack() as stack:
        clients: list[Listener] = []
        for _ in range(10):
            clients += await asyncio.gather(*(stack.enter_async_context(listener(router.address)) for _ in range(20)))
        assert len(router.live.feeds) == 200
        for number in range(10):
            router.say(number)
        heard = await asyncio.gather(*(client.names(10) for client in clients))
        assert heard == [[f"n{number}" for number in range(10)]] * 200
        info = await router.bus.client.jetstream().consumers_info(subjects.STREAM_EVENTS)
        assert len(info) == 1, "one consumer a process"
    await until(lambda: not len(router.live.feeds))


async def test_a_client_hears_only_the_types_it_wants(router: LiveRig, node: PullNode) -> None:
    async with listener(router.address, types="model_ready,model_removed") as client:
        assert client.hello["data"]["types"] == ["model_ready", "model_removed"]
        await router.register(REPO)
        router.say(1)
        await client.of("model_ready")
        await router.hub.delete(DeleteModel(model=NAME))
        await client.of("model_removed")
        assert [m["type"] for m in client.got] == ["hello", "model_ready", "model_removed"]


async def test_progress_of_a_download_comes_at_most_twice_a_second_and_never_after_its_end(
    router: LiveRig, node: PullNode
) -> None:
    node.hub.budget = MIB // 4
    async with listener(router.address, types="task_changed") as client:
        await router.register(REPO)
        told = await client.until(lambda m: m["id"] is None and m["data"]["task"]["downloaded_bytes"] > 0)
        assert told["data"]["node_id"] == node.node_id
        for _ in (2, 3):
            node.hub.budget += MIB // 4
            await client.until(lambda m: m["id"] is None, 10)
        node.hub.release()
        await client.until(lambda m: m["type"] == "task_changed" and m["data"]["task"]["status"] == "completed")
        loose = [m["at"] for m in client.got if m["type"] == "task_changed" and m["id"] is None]
        assert len(loose) >= 3
        assert all(b - a > 0.2 for a, b in itertools.pairwise(loose)), loose
        await asyncio.sleep(1.2)  # two rounds, in which nothing may come
        router.say(1)
        with contextlib.suppress(TimeoutError):
            message = await client.next(0.2)
            raise AssertionError(f"after the end: {message}")


async def test_a_bus_that_is_away_is_said_and_the_socket_stays(make: Make, tmp_path: Path, bus_server: Any) -> None:
    rig = await make()
    async with listener(rig.address) as client:
        assert client.hello["data"]["bus"] is True
        rig.say(0)
        assert await client.names(1) == ["n0"]
        bus_server.kill()
        assert (await client.of("bus"))["data"] == {"connected": False}
        async with listener(rig.address) as meanwhile:
            assert meanwhile.hello["data"]["bus"] is False
            bus_server.start()
            assert (await client.of("bus"))["data"] == {"connected": True}
            rig.say(1)
            assert await client.names(1) == ["n1"]
            assert await meanwhile.names(1) == ["n1"]


async def test_a_bus_that_lost_its_store_is_another_stream(make: Make, tmp_path: Path, bus_server: Any) -> None:
    rig = await make()
    async with listener(rig.address) as client:
        for number in range(5):
            rig.say(number)
        await client.names(5)
        before = client.hello["data"]["stream"]
        bus_server.kill()
        shutil.rmtree(tmp_path / "nats" / "store")
        bus_server.start()
        reset = await client.of("reset")
        assert reset["data"]["reason"] == "another stream"
        assert reset["data"]["stream"] != before
        rig.say(6)
        assert await client.names(1) == ["n6"]


async def test_what_a_router_that_died_did_not_tell_is_told_by_the_next(
    router: LiveRig, make: Make, node: PullNode
) -> None:
    """Killed between the change and its event: as one that stores nothing any more."""
    router.fleet.members.announcer.tell = lambda *_: None  # type: ignore[method-assign]
    await router.register(REPO)
    await until(lambda: router.states(NAME) == ["ready"])
    await until(lambda: [task.status for task in router.hub.board.all()] == ["completed"])
    second = await make()
    async with listener(second.address, after=0) as client:
        await client.of("model_ready", node_id=node.node_id)
    await second.settled()
    third = await make()
    await third.settled()
    kinds = [type(event).__name__ for _, event in await stored(third)]
    assert kinds.count("ClusterModelRegistered") == kinds.count("ClusterModelReady") == 1
    assert kinds.count("ClusterTaskChanged") == 1


async def test_a_download_that_is_asked_for_is_shown_at_once(router: LiveRig, node: PullNode) -> None:
    node.hub.budget = MIB // 4
    await router.register(REPO)
    await until(lambda: router.states(NAME) == ["pending"])
    for one in router.hub.tasks().tasks:
        await router.hub.cancel(CancelClusterTask(task=one.id))
    assert [one.task.status for one in router.hub.tasks().tasks] == ["cancelled"]
    done = await router.hub.download(DownloadModel(model=NAME, all=True))
    assert done.tasks[0].task.status in ("pending", "downloading")
    assert router.hub.tasks().tasks[0].task.status in ("pending", "downloading"), "not the old state"
    node.hub.release()
    await until(lambda: router.states(NAME) == ["ready"])


async def test_a_peer_that_answers_no_ping_is_dropped(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws, "PING_EVERY_S", 0.2)
    monkeypatch.setattr(ws, "PONG_WITHIN_S", 0.3)
    rig = await make()
    async with listener(rig.address) as good:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
        head = "GET /v0/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        writer.write(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
        async with asyncio.timeout(20):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            rest = await reader.read()
            assert (1011).to_bytes(2, "big") in rest[-64:], "the close frame"
            while len(rig.live.feeds) > 1:
                await asyncio.sleep(0.01)
        writer.close()
        rig.say(1)
        assert await good.names(1) == ["n1"]


async def test_a_node_that_an_admin_removes_has_left(router: LiveRig, node: PullNode) -> None:
    async with listener(router.address, types="node_changed") as client:
        await router.fleet.members.remove(node.node_id)
        gone = await client.of("node_changed", node_id=node.node_id, after="offline")
        assert (gone["data"]["before"], gone["data"]["reason"]) == ("online", "an admin removed it")
        await client.of("node_changed", node_id=node.node_id, after="online")


def test_a_router_that_begins_tells_nothing_of_a_node_that_is_online_for_all() -> None:
    """Whatever steps it goes there: none of those that lead in is news; what leads away from online is."""

    def event(before: str | None, after: str, instance: str = "i") -> NodeStateChanged:
        return NodeStateChanged.model_validate(
            {"node_id": "e" * 32, "name": "n", "before": before, "after": after, "reason": "", "instance": instance}
        )

    told = event("registering", "online")
    for after in ("pending", "registering", "online"):
        for before in (None, "offline", "pending", "registering"):
            assert is_behind(event(before, after), told)
    for after in ("pending", "registering", "offline"):
        assert not is_behind(event("online", after), told)
    assert not is_behind(event("online", "registering", "another"), told), "it started again"
