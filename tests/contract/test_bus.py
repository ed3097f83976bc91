"""The bus contract, on the local nats-server binary and, where a Docker engine is present, on the official image."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from nats.aio.msg import Msg

from llmlb.bus import buckets, codec, streams, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, BusDown, DeadlineExceeded, LlmlbError, MessageTooLarge, ModelUnknown, NodeLost
from llmlb.bus.messages.events import NodeStateChanged
from llmlb.bus.messages.infer import CancelRequest, ChatMessage, InferRequest
from llmlb.bus.messages.models import ListModels, ModelDetails, ModelList, ShowModel
from llmlb.bus.messages.router import GetStatus, ListNodes, NodeList
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer


def docker_engine_answers() -> bool:
    """Asked of the socket itself: the docker package leaks its connection when none answers."""
    host = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    try:
        if host.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(host.path)
        else:
            socket.create_connection((host.hostname or "", host.port or 2375), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module", params=["binary", pytest.param("image", marks=pytest.mark.docker)])
def url(request: pytest.FixtureRequest, nats_url: str) -> Iterator[str]:
    """A bus: the run's nats-server, and the official image."""
    if request.param == "binary":
        yield nats_url
        return
    if not docker_engine_answers():
        pytest.skip("no Docker engine")
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    ready = LogMessageWaitStrategy("Server is ready").with_startup_timeout(30)
    container = DockerContainer("nats:2-alpine").with_command("-js").with_exposed_ports(4222).waiting_for(ready)
    with container:
        yield f"nats://{container.get_container_host_ip()}:{container.get_exposed_port(4222)}"


@pytest.fixture
def node() -> str:
    """A node id of this test's own: its subjects meet nobody else's."""
    return uuid.uuid4().hex


def offer(node: str, **handlers: object) -> object:
    """Prepare a bus: rpc handlers ``list`` and ``show`` of a node."""

    async def listed(_: ListModels) -> ModelList:
        return ModelList(models=(), inventory=7)

    async def shown(request: ShowModel) -> ModelDetails:
        raise ModelUnknown(f"model '{request.model}' was not found", param="model")

    def prepare(bus: Bus) -> None:
        bus.handle(subjects.node_rpc(node, "list"), ListModels, ModelList, listed)
        bus.handle(subjects.node_rpc(node, "show"), ShowModel, ModelDetails, shown)

    return prepare


async def test_a_call_gets_its_answer(make_bus: MakeBus, url: str, node: str) -> None:
    bus = await make_bus(offer(node), url=url)
    answer = await bus.call(subjects.node_rpc(node, "list"), ListModels(), ModelList)
    assert answer.inventory == 7


async def test_what_the_handler_raises_is_raised_at_the_caller(make_bus: MakeBus, url: str, node: str) -> None:
    bus = await make_bus(offer(node), url=url)
    with pytest.raises(ModelUnknown, match="'nope' was not found") as caught:
        await bus.call(subjects.node_rpc(node, "show"), ShowModel(model="nope"), ModelDetails)
    assert caught.value.param == "model"


@pytest.mark.parametrize("bug", [KeyError("secret"), ValueError("secret")])
async def test_a_bug_in_a_handler_is_answered_at_once_and_logged(
    make_bus: MakeBus, url: str, node: str, bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def listed(_: ListModels) -> ModelList:
        raise bug

    bus = await make_bus(
        lambda bus: bus.handle(subjects.node_rpc(node, "list"), ListModels, ModelList, listed), url=url
    )
    with pytest.raises(LlmlbError) as caught:
        await bus.call(subjects.node_rpc(node, "list"), ListModels(), ModelList)
    assert caught.value.reason == "internal_error"
    assert "secret" not in f"{caught.value.message} {caught.value.detail}"
    assert f"rpc_handler_failed subject={subjects.node_rpc(node, 'list')}" in caplog.text


@pytest.mark.parametrize("data", [b"", b"garbage", b"{}", b'{"type": "llmlb.other.v1"}', b"[1]", b"\xff\xfe"])
async def test_a_malformed_call_is_answered_with_an_error(make_bus: MakeBus, url: str, node: str, data: bytes) -> None:
    bus = await make_bus(offer(node), url=url)
    msg = await bus.client.request(subjects.node_rpc(node, "show"), data, timeout=2)
    answer = codec.decode(msg.data)
    assert answer is not None
    assert answer.error.reason == "bad_message"  # type: ignore[attr-defined]


async def test_a_call_to_nobody_fails_at_once(make_bus: MakeBus, url: str, node: str) -> None:
    bus = await make_bus(url=url)
    async with asyncio.timeout(1):
        with pytest.raises(NodeLost):
            await bus.call(subjects.node_rpc(node, "list"), ListModels(), ModelList, timeout_s=30)


async def test_a_call_that_is_never_answered_ends_at_its_deadline(make_bus: MakeBus, url: str, node: str) -> None:
    bus = await make_bus(url=url)

    async def silent(_: Msg) -> None: ...

    await bus.subscribe(subjects.node_rpc(node, "list"), silent)
    with pytest.raises(DeadlineExceeded):
        await bus.call(subjects.node_rpc(node, "list"), ListModels(), ModelList, timeout_s=0.1)


async def test_an_answer_of_another_kind_is_refused(make_bus: MakeBus, url: str, node: str) -> None:
    bus = await make_bus(offer(node), url=url)
    with pytest.raises(BadMessage):
        await bus.call(subjects.node_rpc(node, "list"), ListModels(), NodeList)


async def test_one_of_several_routers_answers(make_bus: MakeBus, url: str) -> None:
    asked: list[int] = []

    def prepare(number: int) -> object:
        async def nodes(_: ListNodes) -> NodeList:
            asked.append(number)
            return NodeList(nodes=())

        return lambda bus: bus.handle(
            subjects.router_rpc("nodes"), ListNodes, NodeList, nodes, queue=subjects.QUEUE_ROUTER
        )

    await make_bus(prepare(1), url=url)
    bus = await make_bus(prepare(2), url=url)
    for _ in range(20):
        await bus.call(subjects.router_rpc("nodes"), ListNodes(), NodeList)
    assert len(asked) == 20
    assert set(asked) == {1, 2}


async def test_a_bad_message_does_not_end_a_subscription(make_bus: MakeBus, url: str, node: str) -> None:
    bus = await make_bus(url=url)
    got: asyncio.Queue[str] = asyncio.Queue()

    async def cancel(msg: Msg) -> None:
        if msg.data == b"boom":
            raise RuntimeError("a bug")
        got.put_nowait(codec.decode_as(CancelRequest, msg.data).request_id)

    await bus.subscribe(subjects.cancel(node), cancel)
    await bus.client.publish(subjects.cancel(node), b"garbage")
    await bus.client.publish(subjects.cancel(node), b"boom")
    await bus.publish(subjects.cancel(node), CancelRequest(request_id="good"))
    async with asyncio.timeout(5):
        assert await got.get() == "good"


async def test_an_event_is_kept_in_its_stream(make_bus: MakeBus, url: str, node: str) -> None:
    bus = await make_bus(url=url)
    await asyncio.gather(streams.ensure_streams(bus.client), streams.ensure_streams(bus.client))
    await streams.ensure_streams(bus.client)
    event = NodeStateChanged(node_id=node, name="n", before=None, after="pending", reason="first heartbeat")
    await bus.publish_stored(subjects.event("node"), event)
    kept = await bus.client.jetstream().get_last_msg(subjects.STREAM_EVENTS, subjects.event("node"))
    assert codec.decode_as(NodeStateChanged, kept.data or b"") == event


async def test_two_that_make_a_bucket_at_once_share_it(make_bus: MakeBus, url: str) -> None:
    one, two = await make_bus(url=url), await make_bus(url=url)
    first, second = await asyncio.gather(
        buckets.open_bucket(one.client, subjects.BUCKET_NODES), buckets.open_bucket(two.client, subjects.BUCKET_NODES)
    )
    key = uuid.uuid4().hex
    await first.put(key, b"x")
    assert (await second.get(key)).value == b"x"


async def test_a_message_too_large_for_the_bus_is_refused(make_bus: MakeBus, url: str, node: str) -> None:
    bus = await make_bus(url=url)
    huge = InferRequest(
        request_id="r", model="m", kind="chat", messages=(ChatMessage(role="user", content="x" * (9 << 20)),)
    )
    with pytest.raises(MessageTooLarge):
        await bus.publish(subjects.infer(node), huge)


async def test_everything_works_again_after_the_server_was_restarted(tmp_path: Path, make_bus: MakeBus) -> None:
    server = NatsServer(tmp_path / "own").start()
    node = uuid.uuid4().hex
    got: asyncio.Queue[str] = asyncio.Queue()
    ups: list[int] = []
    try:
        bus = await make_bus(offer(node), url=server.url)

        async def cancel(msg: Msg) -> None:
            got.put_nowait(codec.decode_as(CancelRequest, msg.data).request_id)

        async def up() -> None:
            ups.append(1)

        await bus.subscribe(subjects.cancel(node), cancel)
        bus.on_up(up)
        server.kill()
        async with asyncio.timeout(5):
            while bus.connected:
                await asyncio.sleep(0.01)
        event = NodeStateChanged(node_id=node, name="n", before=None, after="pending", reason="lost")
        began = asyncio.get_running_loop().time()
        with pytest.raises(BusDown):
            await bus.publish(subjects.cancel(node), CancelRequest(request_id="lost"))
        with pytest.raises(BusDown):
            await bus.publish_stored(subjects.event("node"), event)
        with pytest.raises(BusDown):
            await bus.call(subjects.router_rpc("status"), GetStatus(), NodeList)
        assert asyncio.get_running_loop().time() - began < 0.5, "a bus that is away is said at once"
        server.start()
        async with asyncio.timeout(10):
            await bus.wait_up()
            while not ups:
                await asyncio.sleep(0.01)
            await bus.publish(subjects.cancel(node), CancelRequest(request_id="back"))
            assert await got.get() == "back"
            assert (await bus.call(subjects.node_rpc(node, "list"), ListModels(), ModelList)).inventory == 7
        await bus.close()
    finally:
        server.stop()


async def test_a_process_that_starts_before_its_bus_waits_for_it(tmp_path: Path, make_bus: MakeBus) -> None:
    server = NatsServer(tmp_path / "own").start()
    url = server.url
    server.stop()
    waiting = asyncio.ensure_future(make_bus(url=url))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    server.start()
    try:
        bus = await waiting
        assert bus.connected
        await bus.close()
    finally:
        server.stop()
