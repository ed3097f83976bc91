"""The registry bucket as the desired state of a node: pulled, removed, caught up."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.buckets import open_bucket, read_bucket
from llmlb.bus.connection import Bus
from llmlb.bus.messages.models import ModelInfo, RegisteredModel
from llmlb.bus.messages.nodes import Heartbeat, NodeRecord
from llmlb.node.sync import is_it, wanted_of
from tests.conftest import MakeBus
from tests.support.hub import LocalHub
from tests.support.natsd import NatsServer
from tests.support.pulls import MIB, PullNode, eventually, gguf_bytes, pull_node

REPO, FILE = "own/model", "model-Q4_K_M.gguf"
DATA = gguf_bytes(MIB)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as made:
        made.add(REPO, {FILE: DATA, "model-Q8_0.gguf": gguf_bytes(MIB, "Q8_0", seed=2)})
        made.add("own/other", {"other-Q4_0.gguf": gguf_bytes(MIB, "Q4_0", seed=3)})
        yield made


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A bus of this test's own: the registry is one for all nodes of a bus."""
    server = NatsServer(tmp_path / "nats").start()
    yield server.url
    server.stop()


@pytest.fixture
async def node(make_bus: MakeBus, tmp_path: Path, hub: LocalHub, url: str) -> AsyncIterator[PullNode]:
    async with pull_node(make_bus, tmp_path / "node", hub, url=url) as made:
        yield made
        await made.stop()
        await made.bus.close()


async def approve(bus: Bus, node_id: str, approved: bool = True) -> None:
    bucket = await open_bucket(bus.client, subjects.BUCKET_NODES)
    record = NodeRecord(node_id=node_id, name="here", approved=approved, first_seen_at=time.time())
    await bucket.put(node_id, codec.encode(record))


async def register(bus: Bus, name: str, *, file: str | None = None, nodes: tuple[str, ...] | None = None) -> None:
    bucket = await open_bucket(bus.client, subjects.BUCKET_MODELS)
    model = RegisteredModel(name=name, file=file, nodes=nodes, registered_at=time.time())
    await bucket.put(subjects.model_key(name), codec.encode(model))


async def deregister(bus: Bus, name: str) -> None:
    await (await open_bucket(bus.client, subjects.BUCKET_MODELS)).delete(subjects.model_key(name))


def counts(node: PullNode) -> tuple[int, int]:
    message = node.agent.heart.message()
    return message.models_ready, message.models_total


async def has(node: PullNode, *names: str) -> None:
    async def yes() -> bool:
        return node.names == list(names)

    await eventually(yes)


async def counted(node: PullNode, ready: int, total: int) -> None:
    async def yes() -> bool:
        return counts(node) == (ready, total)

    await eventually(yes)


async def test_what_is_registered_is_pulled_and_what_is_deleted_is_removed(node: PullNode) -> None:
    await approve(node.bus, node.node_id)
    node.hub.budget = 0
    await register(node.bus, f"{REPO}:Q4_K_M")
    await register(node.bus, "own/other")
    await counted(node, 0, 2)
    node.hub.release()
    await has(node, REPO, "own/other")
    await counted(node, 2, 2)
    assert {task.origin for task in (await node.rpc.tasks()).tasks} == {"sync"}
    await deregister(node.bus, f"{REPO}:Q4_K_M")
    await has(node, "own/other")
    await counted(node, 1, 1)
    assert not (node.models / REPO).exists()


async def test_a_node_that_is_not_approved_does_nothing_until_it_is(node: PullNode) -> None:
    await approve(node.bus, node.node_id, approved=False)
    await register(node.bus, "own/other")
    await node.over((await node.rpc.pull(REPO)).task.task_id)
    assert counts(node) == (0, 0)
    await approve(node.bus, node.node_id)
    await has(node, REPO, "own/other")


async def test_a_model_that_a_user_pulled_too_stays(node: PullNode) -> None:
    await approve(node.bus, node.node_id)
    await register(node.bus, REPO)
    await has(node, REPO)
    done = await node.over((await node.rpc.pull(REPO)).task.task_id)
    assert done.status == "completed"
    await node.until_acked()
    await deregister(node.bus, REPO)
    await counted(node, 0, 0)
    await register(node.bus, "own/other")
    await has(node, REPO, "own/other")
    await deregister(node.bus, "own/other")
    await has(node, REPO)


async def test_a_model_that_was_there_before_is_not_pulled_again_and_stays(node: PullNode) -> None:
    await node.over((await node.rpc.pull(REPO)).task.task_id)
    before = node.hub.served()
    await approve(node.bus, node.node_id)
    await register(node.bus, REPO)
    await counted(node, 1, 1)
    assert node.hub.served() == before
    await deregister(node.bus, REPO)
    await counted(node, 0, 0)
    assert node.names == [REPO]


async def test_a_registration_for_other_nodes_is_not_for_this_one(node: PullNode) -> None:
    await approve(node.bus, node.node_id)
    await register(node.bus, REPO, nodes=(uuid.uuid4().hex,))
    await register(node.bus, "own/other", nodes=(uuid.uuid4().hex, node.node_id))
    await has(node, "own/other")
    assert counts(node) == (1, 1)
    await register(node.bus, "own/other", nodes=())
    await has(node)


async def test_a_pull_that_the_bus_has_lost_is_looked_up_in_the_registry(node: PullNode) -> None:
    """See tests/unit/node/test_put_back.py for what is done with it."""
    node.hub.budget = 0
    await approve(node.bus, node.node_id)
    await register(node.bus, "own/other")
    await counted(node, 0, 1)
    (task,) = (await node.rpc.tasks()).tasks
    records = await node.pulls.put_back.registered()
    assert {task_id: record.name for task_id, record in records.items()} == {task.task_id: "own/other"}
    assert records[task.task_id].registered_at == task.registered_at


async def test_one_file_can_be_registered(node: PullNode) -> None:
    await approve(node.bus, node.node_id)
    await register(node.bus, REPO, file="model-Q8_0.gguf")
    await counted(node, 1, 1)
    assert (node.models / REPO / "model-Q8_0.gguf").exists()
    assert not (node.models / REPO / FILE).exists()
    await deregister(node.bus, REPO)
    await has(node)


async def test_deleting_a_registration_cancels_its_pull(node: PullNode) -> None:
    await approve(node.bus, node.node_id)
    node.hub.budget = 256 * 1024
    await register(node.bus, REPO)

    async def running() -> bool:
        return any(task.downloaded_bytes for task in (await node.rpc.tasks()).tasks)

    await eventually(running)
    await deregister(node.bus, REPO)
    (task,) = (await node.rpc.tasks()).tasks
    assert (await node.over(task.task_id)).status == "cancelled"
    await node.until_acked()


async def test_a_pull_that_failed_is_tried_again_later(node: PullNode, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.agent.models is not None
    node.agent.models.sync._retry_first_s = 0.3
    await approve(node.bus, node.node_id)
    await register(node.bus, "own/later")

    async def failed() -> bool:
        tasks = (await node.rpc.tasks()).tasks
        return bool(tasks) and tasks[0].status == "failed"

    await eventually(failed)
    node.hub.add("own/later", {"later-Q4_0.gguf": gguf_bytes(MIB, "Q4_0", seed=8)})
    await has(node, "own/later")


async def test_a_node_that_was_away_catches_up(make_bus: MakeBus, tmp_path: Path, hub: LocalHub, url: str) -> None:
    node_id, admin = uuid.uuid4().hex, await make_bus(url=url)
    await approve(admin, node_id)
    await register(admin, REPO)
    first = await PullNode(tmp_path / "node", node_id, hub).start(make_bus, url=url)
    await has(first, REPO)
    await first.until_acked()
    await first.stop()
    await first.bus.close()
    await deregister(admin, REPO)
    await register(admin, "own/other")
    second = await PullNode(tmp_path / "node", node_id, hub).start(make_bus, url=url)
    await has(second, "own/other")
    await second.stop()
    await second.bus.close()
    await admin.close()


async def test_the_first_heartbeat_says_what_is_still_missing(
    make_bus: MakeBus, tmp_path: Path, hub: LocalHub, url: str
) -> None:
    """Otherwise a router takes a node that just started for one that is ready."""
    node_id, admin, beats = uuid.uuid4().hex, await make_bus(url=url), list[Heartbeat]()

    async def hear(msg: Msg) -> None:
        beats.append(codec.decode_as(Heartbeat, msg.data))

    await admin.subscribe(subjects.heartbeat(node_id), hear)
    await approve(admin, node_id)
    await register(admin, REPO)
    hub.budget = 0
    node = await PullNode(tmp_path / "node", node_id, hub).start(make_bus, url=url)
    try:

        async def heard() -> bool:
            return bool(beats)

        await eventually(heard)
        assert (beats[0].models_ready, beats[0].models_total) == (0, 1)
        hub.release()
        await counted(node, 1, 1)
    finally:
        await node.stop()
        await node.bus.close()
        await admin.close()


async def test_a_bus_that_lost_its_registry_removes_nothing(node: PullNode) -> None:
    await approve(node.bus, node.node_id)
    await register(node.bus, REPO)
    await has(node, REPO)
    await node.bus.client.jetstream().delete_key_value(subjects.BUCKET_MODELS)
    await register(node.bus, "own/other")
    await has(node, REPO, "own/other")


async def test_a_bucket_is_read_as_a_whole_with_what_was_deleted(make_bus: MakeBus, url: str) -> None:
    bus = await make_bus(url=url)
    assert await read_bucket(bus.client, subjects.BUCKET_SETTINGS) == {}
    bucket = await open_bucket(bus.client, subjects.BUCKET_SETTINGS)
    assert await read_bucket(bus.client, subjects.BUCKET_SETTINGS) == {}
    await bucket.put("a", b"1")
    await bucket.put("b/c=D", b"")
    await bucket.put("gone", b"1")
    await bucket.delete("gone")
    assert await read_bucket(bus.client, subjects.BUCKET_SETTINGS) == {"a": b"1", "b/c=D": b"", "gone": None}
    assert await read_bucket(bus.client, subjects.BUCKET_SETTINGS, "a") == {"a": b"1"}
    await bus.close()


@pytest.mark.parametrize(
    ("registered", "file", "name", "path", "same"),
    [
        ("own/model", None, "own/model", "x.gguf", True),
        ("own/model", None, "own/model:Q8_0", "x.gguf", True),
        ("Own/Model", None, "own/model", "x.gguf", True),
        ("own/model:Q8_0", None, "own/model:Q8_0", "x.gguf", True),
        ("own/model:q4_k_m", None, "own/model", "x.gguf", True),
        ("own/model:Q8_0", None, "own/model", "x.gguf", False),
        ("own/model", "sub/x.gguf", "own/model", "x.gguf", True),
        ("own/model", "y.gguf", "own/model", "x.gguf", False),
        ("own/models", None, "own/model", "x.gguf", False),
    ],
)
def test_a_registration_is_matched_with_a_model(
    registered: str, file: str | None, name: str, path: str, same: bool
) -> None:
    info = ModelInfo(
        name=name,
        format="GGUF",
        size_bytes=1,
        architecture="llama",
        quantization="Q4_K_M" if ":" not in name else None,
        source="HuggingFace",
        created_at=0,
    )
    assert is_it(wanted_of(registered, file), info, path) == same
