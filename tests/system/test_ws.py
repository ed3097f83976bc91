"""Events over real processes: a router that is killed, several processes of one router."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.cluster import Process, wait_until
from tests.support.live import Listener, listener
from tests.support.simcluster import SimCluster, simcluster
from tests.system.test_workers import listeners

STEPS = ["pending", "registering", "online"]


@pytest.fixture
def it(tmp_path: Path) -> Iterator[SimCluster]:
    with simcluster(tmp_path) as made:
        yield made


def address(router: Process) -> str:
    return router.url.replace("http", "ws") + "/v0/ws"


@contextlib.asynccontextmanager
async def when_ready(where: str) -> AsyncIterator[Listener]:
    """A process that listens already may not know yet who may: it says so, with 503."""
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        while True:
            try:
                client = await stack.enter_async_context(listener(where))
                break
            except InvalidStatus as error:
                if error.response.status_code != 503:
                    raise
                await asyncio.sleep(0.1)
        kept = stack.pop_all()
    async with kept:
        yield client


async def online(client: Listener, node_id: str) -> dict[str, Any]:
    return await client.of("node_changed", limit_s=60, node_id=node_id, after="online")


async def test_a_client_of_a_router_that_was_killed_comes_back_and_has_missed_nothing(it: SimCluster) -> None:
    first, second = it.start_router("first"), it.start_router("second")
    for router in (first, second):
        wait_until(router.ready, 60, router.output())
    async with listener(address(first)) as client, listener(address(second)) as other:
        one = it.start_node("one")
        await online(client, one.node_id)
        await online(other, one.node_id)
        first.kill()
        with pytest.raises(ConnectionClosed):
            await client.until(lambda _: False)
        last, stream = max([*client.ids, client.hello["id"]]), client.hello["data"]["stream"]
        # What happens while it is away is told by the other router.
        two = it.start_node("two")
        await online(other, two.node_id)
        assert first.router_port
        again = await asyncio.to_thread(lambda: it.start_router("first", port=first.router_port or 0))
        await asyncio.to_thread(wait_until, again.ready, 60, "the router is back")
        async with listener(address(again), after=last, stream=stream) as back:
            assert back.hello["id"] == last
            found = await online(back, two.node_id)
            three = it.start_node("three")
            end = await online(back, three.node_id)
            await other.until(lambda m: m["id"] == end["id"], 60)
    assert found["id"] < end["id"]
    # Its two connections together have what the one that was never cut has, with the same ids.
    kept = {m["id"]: (m["type"], m["data"]) for m in [*client.got, *back.got] if m["id"] and m["type"] != "hello"}
    there = {m["id"]: (m["type"], m["data"]) for m in other.got if m["id"] and m["type"] != "hello"}
    begin = max(min(kept), min(there))
    assert {k: v for k, v in kept.items() if begin <= k <= end["id"]} == {
        k: v for k, v in there.items() if begin <= k <= end["id"]
    }
    changes = [(d["node_id"], d["before"], d["after"], d["instance"]) for _, d in kept.values()]
    assert len(changes) == len(set(changes)), "two routers, and each change once"
    for node in (one, two):
        assert [after for node_id, _, after, _ in changes if node_id == node.node_id] == STEPS, "the new router's view"


async def test_every_process_of_a_router_tells_the_same_and_ends_its_clients(it: SimCluster) -> None:
    router = it.start_router("router", LLMLB_ROUTER_WORKERS="2")
    await asyncio.to_thread(wait_until, router.ready, 60, "ready")
    await asyncio.to_thread(wait_until, lambda: listeners(router.router_port or 0) == 2, 60, "both listen")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(when_ready(address(router))) for _ in range(6)]
        node = it.start_node("one")
        found = [await online(client, node.node_id) for client in clients]
        assert len({(m["id"], m["at"]) for m in found}) == 1
        router.popen.terminate()
        codes = {(await client.end(60))[0] for client in clients}
        assert codes == {1001}
