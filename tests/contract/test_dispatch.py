"""Dispatch over a real bus, with scripted nodes: these test routing and failures, not inference."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import (
    EngineCrashed,
    EngineStalled,
    InvalidRequest,
    LlmlbError,
    ModelDownloading,
    ModelUnknown,
    NoCapableNode,
    NodeBusy,
    NodeLost,
    QueueFull,
)
from llmlb.bus.machine import machine_digest
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.infer import (
    Accepted,
    CancelRequest,
    ChatMessage,
    Delta,
    End,
    Failed,
    InferReply,
    InferRequest,
    Progress,
    Usage,
)
from llmlb.bus.messages.models import ListModels, ModelInfo, ModelList
from llmlb.bus.messages.nodes import Heartbeat
from llmlb.bus.messages.requests import RequestRecord
from llmlb.router.dispatch import ATTEMPTS_MAX, Dispatcher
from llmlb.router.fleet import Fleet
from llmlb.router.inbox import Inbox
from tests.conftest import MakeBus

Script = Callable[["ScriptedNode", InferRequest, str], Awaitable[None]]
USAGE = Usage(prompt_tokens=1, completion_tokens=2)


class ScriptedNode:
    """A node that says what a test tells it to."""

    def __init__(self, script: Script, model: str) -> None:
        self.node_id = uuid.uuid4().hex
        self.script = script
        self.model = model
        self.asked = 0
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.bus: Bus | None = None

    def prepare(self, bus: Bus) -> None:
        async def listed(_: ListModels) -> ModelList:
            info = ModelInfo(
                name=self.model, format="GGUF", size_bytes=1, architecture="llama", source="Local", created_at=0
            )
            return ModelList(models=(info,), inventory=1)

        bus.handle(subjects.node_rpc(self.node_id, "list"), ListModels, ModelList, listed)
        self.bus = bus

    async def join(self) -> None:
        assert self.bus is not None

        async def infer(msg: Msg) -> None:
            self.asked += 1
            request = codec.decode_as(InferRequest, msg.data)
            await self.script(self, request, msg.reply)

        async def cancel(msg: Msg) -> None:
            self.cancelled.put_nowait(codec.decode_as(CancelRequest, msg.data).request_id)

        await self.bus.subscribe(subjects.infer(self.node_id), infer)
        await self.bus.subscribe(subjects.cancel(self.node_id), cancel)
        await self.beat()

    async def beat(self, **fields: object) -> None:
        assert self.bus is not None
        base: dict[str, object] = {
            "node_id": self.node_id,
            "instance": "0" * 12,
            "version": "0",
            "name": "scripted",
            "machine": machine_digest(),
            "gateway": "127.0.0.1:1",
            "uptime_s": 1,
            "inventory": 1,
            "models_ready": 1,
            "models_total": 1,
        }
        await self.bus.publish(subjects.heartbeat(self.node_id), Heartbeat.model_validate({**base, **fields}))

    async def say(self, to: str, *messages: InferReply) -> None:
        assert self.bus is not None
        for message in messages:
            await self.bus.publish(to, message)


def answer(*texts: str) -> Script:
    async def script(node: ScriptedNode, request: InferRequest, to: str) -> None:
        id = request.request_id
        deltas = [Delta(request_id=id, seq=i + 1, text=text, token_ids=(i,)) for i, text in enumerate(texts)]
        end = End(request_id=id, seq=len(texts) + 1, finish_reason="stop", usage=USAGE)
        await node.say(to, Accepted(request_id=id, seq=0, node_id=node.node_id), *deltas, end)

    return script


def fail(error: LlmlbError, *, after: str | None = None) -> Script:
    async def script(node: ScriptedNode, request: InferRequest, to: str) -> None:
        id, seq = request.request_id, 1
        await node.say(to, Accepted(request_id=id, seq=0, node_id=node.node_id))
        if after is not None:
            await node.say(to, Delta(request_id=id, seq=1, text=after))
            seq = 2
        await node.say(to, Failed(request_id=id, seq=seq, error=WireError.of(error)))

    return script


async def silent(node: ScriptedNode, request: InferRequest, to: str) -> None:
    await node.say(to, Accepted(request_id=request.request_id, seq=0, node_id=node.node_id))


class Rig:
    """A fleet and a dispatcher, and nodes that have a model of this test's own."""

    def __init__(self, make_bus: MakeBus) -> None:
        self.model = f"test/{uuid.uuid4().hex[:12]}"
        self.records: asyncio.Queue[RequestRecord] = asyncio.Queue()
        self._make_bus = make_bus

    async def start(self, **settings: object) -> None:
        self.bus = await self._make_bus(**settings)
        self.fleet = Fleet(self.bus)
        self.dispatcher = Dispatcher(self.bus, self.fleet)
        await self.fleet.start()
        await self.dispatcher.start()

        async def record(msg: Msg) -> None:
            found = codec.decode_as(RequestRecord, msg.data)
            if found.model == self.model:
                self.records.put_nowait(found)

        await self.bus.subscribe(subjects.all_request_records(), record)

    async def node(self, script: Script) -> ScriptedNode:
        node = ScriptedNode(script, self.model)
        await self._make_bus(node.prepare)
        await node.join()
        async with asyncio.timeout(5):
            while not any(v.node_id == node.node_id and v.models for v in self.fleet.nodes()):
                await asyncio.sleep(0.01)
        return node

    async def ask(self, model: str | None = None) -> str:
        request = InferRequest(
            request_id=uuid.uuid4().hex,
            model=model or self.model,
            kind="chat",
            messages=(ChatMessage(role="user", content="hi"),),
        )
        text = ""
        async with contextlib.aclosing(self.dispatcher.stream(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    text += event.text
        return text


@pytest.fixture
async def rig(make_bus: MakeBus) -> AsyncIterator[Rig]:
    it = Rig(make_bus)
    await it.start(stall_timeout_s=0.5)
    yield it
    await it.fleet.close()


async def test_an_answer_arrives_whole_and_is_recorded(rig: Rig) -> None:
    node = await rig.node(answer("Hel", "lo"))
    assert await rig.ask() == "Hello"
    async with asyncio.timeout(2):
        record = await rig.records.get()
    assert (record.status, record.node_id, record.attempts) == ("ok", node.node_id, 1)
    assert record.usage == USAGE
    assert record.first_token_ms is not None


async def test_an_unknown_model_is_unknown_and_a_known_one_without_a_node_is_not(rig: Rig) -> None:
    with pytest.raises(NoCapableNode, match="no node is online yet"):
        await rig.ask()
    node = await rig.node(answer("x"))
    with pytest.raises(ModelUnknown):
        await rig.ask(model="nobody/has-this")
    await node.beat(draining=True)
    async with asyncio.timeout(2):
        while rig.fleet.list_models() and any(m.name == rig.model for m in rig.fleet.list_models()):
            await asyncio.sleep(0.01)
    with pytest.raises(NoCapableNode):
        await rig.ask()


async def test_a_model_that_is_on_its_way_is_downloading_and_not_unknown(rig: Rig) -> None:
    node = await rig.node(answer("x"))
    await node.beat(pulling=("some/model:Q4_K_M", "other/one"))
    for wanted in ("some/model", "some/model:Q4_K_M", "other/one", "other/one:Q8_0"):
        async with asyncio.timeout(5):
            while True:
                with pytest.raises((ModelUnknown, ModelDownloading)) as caught:
                    await rig.ask(model=wanted)
                if isinstance(caught.value, ModelDownloading):
                    break
                await asyncio.sleep(0.01)
    with pytest.raises(ModelUnknown):
        await rig.ask(model="some/modelling")


@pytest.mark.parametrize(
    "error",
    [EngineCrashed("dead"), NodeBusy("full"), NodeLost("gone"), EngineStalled("hangs"), ModelUnknown("old list")],
)
async def test_a_nodes_failure_before_the_first_text_goes_to_another_node(rig: Rig, error: LlmlbError) -> None:
    bad = await rig.node(fail(error))
    good = await rig.node(answer("fine"))
    for _ in range(4):
        assert await rig.ask() == "fine"
    assert good.asked == 4
    assert bad.asked >= 1


async def test_a_fault_of_the_request_is_not_tried_again(rig: Rig) -> None:
    nodes = [await rig.node(fail(InvalidRequest("bad", param="x"))) for _ in range(2)]
    with pytest.raises(InvalidRequest):
        await rig.ask()
    assert sum(node.asked for node in nodes) == 1


async def test_a_failure_after_the_first_text_is_one_error(rig: Rig) -> None:
    nodes = [await rig.node(fail(EngineCrashed("dead"), after="Hel")) for _ in range(2)]
    with pytest.raises(EngineCrashed):
        await rig.ask()
    assert sum(node.asked for node in nodes) == 1


async def test_when_every_node_is_full_the_queue_is(rig: Rig) -> None:
    for _ in range(2):
        await rig.node(fail(NodeBusy("full")))
    with pytest.raises(QueueFull):
        await rig.ask()


async def test_attempts_are_bounded(rig: Rig) -> None:
    nodes = [await rig.node(fail(NodeLost("gone"))) for _ in range(ATTEMPTS_MAX + 1)]
    with pytest.raises(NodeLost):
        await rig.ask()
    assert sum(node.asked for node in nodes) == ATTEMPTS_MAX


async def test_a_gap_in_the_numbers_is_a_failure_and_never_a_short_answer(rig: Rig) -> None:
    async def gap(node: ScriptedNode, request: InferRequest, to: str) -> None:
        id = request.request_id
        await node.say(
            to,
            Accepted(request_id=id, seq=0, node_id=node.node_id),
            Delta(request_id=id, seq=1, text="a"),
            End(request_id=id, seq=3, finish_reason="stop", usage=USAGE),
        )

    node = await rig.node(gap)
    with pytest.raises(NodeLost, match="gap"):
        await rig.ask()
    async with asyncio.timeout(2):
        await node.cancelled.get()


async def test_silence_is_a_failure_after_the_stall_limit_and_frees_the_node(rig: Rig) -> None:
    node = await rig.node(silent)
    began = time.monotonic()
    with pytest.raises(EngineStalled):
        await rig.ask()
    assert 0.4 < time.monotonic() - began < 3
    async with asyncio.timeout(2):
        await node.cancelled.get()


async def test_progress_is_a_sign_of_life(rig: Rig) -> None:
    async def slow(node: ScriptedNode, request: InferRequest, to: str) -> None:
        id = request.request_id
        await node.say(to, Accepted(request_id=id, seq=0, node_id=node.node_id))
        for seq in range(1, 6):
            await asyncio.sleep(0.2)
            await node.say(to, Progress(request_id=id, seq=seq, phase="prefill", done=seq, total=5))
        await node.say(to, Delta(request_id=id, seq=6, text="at last"))
        await node.say(to, End(request_id=id, seq=7, finish_reason="stop", usage=USAGE))

    await rig.node(slow)
    assert await rig.ask() == "at last"


async def test_a_node_without_subscription_is_passed_over_at_once(rig: Rig) -> None:
    dead = await rig.node(answer("never"))
    good = await rig.node(answer("fine"))
    assert dead.bus is not None
    await dead.bus.close()
    began = time.monotonic()
    for _ in range(4):
        assert await rig.ask() == "fine"
    assert time.monotonic() - began < 2
    assert good.asked == 4
    view = {view.node_id: view for view in rig.fleet.nodes()}
    assert view[dead.node_id].suspect


async def test_closing_the_stream_cancels_on_the_node_and_is_recorded(rig: Rig) -> None:
    async def endless(node: ScriptedNode, request: InferRequest, to: str) -> None:
        id = request.request_id
        await node.say(to, Accepted(request_id=id, seq=0, node_id=node.node_id), Delta(request_id=id, seq=1, text="a"))

    node = await rig.node(endless)
    task = asyncio.ensure_future(rig.ask())
    async with asyncio.timeout(2):
        while not node.asked:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await node.cancelled.get()
        assert (await rig.records.get()).status == "cancelled"


async def test_unreadable_replies_are_a_failure(rig: Rig) -> None:
    async def garbage(node: ScriptedNode, request: InferRequest, to: str) -> None:
        assert node.bus is not None
        await node.bus.publish_bytes(to, b"garbage")

    await rig.node(garbage)
    with pytest.raises(NodeLost):
        await rig.ask()


async def test_a_node_of_another_machine_waits_for_approval(rig: Rig) -> None:
    node = ScriptedNode(answer("fine"), rig.model)
    await rig._make_bus(node.prepare)
    await node.join()  # its first heartbeat is from this machine, so use a fresh id below
    stranger = ScriptedNode(answer("fine"), f"{rig.model}-remote")
    bus = await rig._make_bus(stranger.prepare)
    stranger.bus = bus
    await stranger.beat(machine="f" * 32)
    async with asyncio.timeout(5):
        while not any(v.node_id == stranger.node_id and v.models for v in rig.fleet.nodes()):
            await asyncio.sleep(0.01)
    assert {v.node_id: v.state for v in rig.fleet.nodes()}[stranger.node_id] == "pending"
    with pytest.raises(LlmlbError, match="no node has an id"):
        await rig.fleet.approve("zz")
    assert await rig.fleet.approve(stranger.node_id[:16]) == stranger.node_id
    await stranger.beat(machine="f" * 32)
    async with asyncio.timeout(5):
        while {v.node_id: v.state for v in rig.fleet.nodes()}[stranger.node_id] != "online":
            await asyncio.sleep(0.01)
    # Another router, started later, knows of the approval.
    later = Fleet(await rig._make_bus())
    await later.start()
    assert {v.node_id: v.state for v in later.nodes()}[stranger.node_id] == "offline"
    await stranger.beat(machine="f" * 32)
    async with asyncio.timeout(5):
        while {v.node_id: v.state for v in later.nodes()}[stranger.node_id] != "online":
            await asyncio.sleep(0.01)
    await later.close()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_cancellation_that_meets_a_reply_is_not_lost(turns: int) -> None:
    inbox = Inbox()
    reader = asyncio.ensure_future(inbox.get())
    await asyncio.sleep(0)
    inbox.put(Progress(request_id="r", seq=0, phase="prefill"))
    for _ in range(turns):  # somewhere between the reply and the reader's going on
        await asyncio.sleep(0)
    was_done = reader.done()
    reader.cancel()
    if was_done:
        assert (await reader).seq == 0
    else:
        with pytest.raises(asyncio.CancelledError):
            await reader
