"""Simulated nodes behind the real fleet and dispatcher, over a real bus."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus import subjects
from llmlb.bus.errors import (
    EngineCrashed,
    EngineStalled,
    LlmlbError,
    ModelLoadFailed,
    ModelUnknown,
    NodeLost,
    QueueFull,
)
from llmlb.bus.messages.infer import ChatMessage, Delta, Embedded, End, InferRequest, Progress, Sampling
from llmlb.bus.messages.models import (
    ListRunning,
    ModelStopped,
    RunningList,
    StopModel,
)
from llmlb.node.engine.simulated import Fault, SimulatedSpec
from llmlb.node.engine.simulated_pool import SimulatedPool
from llmlb.node.engine.simulated_script import Script, vector
from llmlb.router.dispatch import Dispatcher
from llmlb.router.fleet import Fleet
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer
from tests.support.simulated import SimulatedNode, simulated_nodes

FAST = 2000.0
"""Tokens a second, where a test is not about time."""
STALL_S = 0.8
WAITING = 4


class Rig:
    """A fleet and a dispatcher, and simulated nodes that share one connection and a model of this test's own."""

    def __init__(self, make_bus: MakeBus) -> None:
        self.model = f"simulated/{uuid.uuid4().hex[:12]}"
        self._make_bus = make_bus
        self._nodes: list[SimulatedNode] = []

    async def start(self, **settings: object) -> None:
        self.bus = await self._make_bus(**settings)
        self._nodes_bus = await self._make_bus(**settings)
        self.fleet = Fleet(self.bus)
        self.dispatcher = Dispatcher(self.bus, self.fleet)
        await self.fleet.start()
        await self.dispatcher.start()

    async def close(self) -> None:
        for node in self._nodes:
            await node.kill()
        await self.fleet.close()

    async def node(self, *faults: Fault, **spec: Any) -> SimulatedNode:
        made = SimulatedSpec(**{"tokens_per_s": FAST, "answer_tokens": 8, **spec, "faults": faults})
        node = SimulatedNode(self._nodes_bus, made, models=[self.model])
        self._nodes.append(node)
        await node.start()
        await self.until(lambda: any(view.node_id == node.node_id and view.models for view in self.fleet.nodes()))
        return node

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)

    def request(self, text: str = "hi", **fields: Any) -> InferRequest:
        base: dict[str, Any] = {"model": self.model, "kind": "chat", **fields}
        return InferRequest(request_id=uuid.uuid4().hex, messages=(ChatMessage(role="user", content=text),), **base)

    async def replies(self, request: InferRequest) -> list[Progress | Delta | Embedded | End]:
        async with contextlib.aclosing(self.dispatcher.stream(request)) as stream:
            return [reply async for reply in stream]

    async def ask(self, request: InferRequest) -> str:
        return "".join(reply.text for reply in await self.replies(request) if isinstance(reply, Delta))


@pytest.fixture
async def rig(make_bus: MakeBus) -> AsyncIterator[Rig]:
    it = Rig(make_bus)
    await it.start(stall_timeout_s=STALL_S)
    yield it
    await it.close()


async def test_an_answer_arrives_whole_with_usage_and_timings(rig: Rig) -> None:
    await rig.node(tokens_per_s=200, first_token_delay_s=0.05)
    request = rig.request()
    replies = await rig.replies(request)
    *deltas, end = [reply for reply in replies if not isinstance(reply, Progress)]
    assert isinstance(end, End)
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == Script.of(request).text(8)
    assert [id for delta in deltas if isinstance(delta, Delta) for id in delta.token_ids] == list(
        Script.of(request).tokens(8)
    )
    assert (end.finish_reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("stop", 2, 8)
    assert end.timings.prefill_ms >= 50
    assert end.timings.prefill_ms + end.timings.decode_ms > 50 + 7 * 5 - 1


async def test_a_continuation_on_another_node_is_the_same_rest(rig: Rig) -> None:
    await rig.node()
    await rig.node()
    request = rig.request("tell me", sampling=Sampling(seed=7, max_tokens=6))
    whole = Script.of(request)
    for had in range(7):
        rest = await rig.ask(request.model_copy(update={"continuation": whole.tokens(had)}))
        assert whole.text(had) + rest == whole.text(6)


async def test_vectors_come_back_for_every_input(rig: Rig) -> None:
    await rig.node()
    replies = await rig.replies(rig.request(kind="embedding", inputs=("a b", (1, 2))))
    vectors = [base64.b64decode(reply.vector) for reply in replies if isinstance(reply, Embedded)]
    assert vectors == [vector("a b"), vector((1, 2))]
    assert isinstance(replies[-1], End)


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (Fault("crash", after_tokens=3), EngineCrashed, "after 3 tokens"),
        (Fault("crash"), EngineCrashed, "after 0 tokens"),
        (Fault("hang", after_tokens=3), EngineStalled, "no sign of life"),
        (Fault("gap", after_tokens=3), NodeLost, "gap"),
        (Fault("load_failure"), ModelLoadFailed, "script"),
    ],
)
async def test_each_fault_is_its_documented_error_and_the_next_request_is_well(
    rig: Rig, fault: Fault, error: type[LlmlbError], text: str
) -> None:
    node = await rig.node(fault)
    with pytest.raises(error, match=text):
        await rig.ask(rig.request())
    await rig.until(lambda: node.running == 0)
    # After a gap the node counts as lost until its next heartbeat.
    await rig.until(lambda: not any(view.suspect for view in rig.fleet.nodes() if view.node_id == node.node_id))
    request = rig.request()
    assert await rig.ask(request) == Script.of(request).text(8)


async def test_a_slow_first_token_is_no_error_as_progress_comes(rig: Rig) -> None:
    await rig.node(Fault("slow_first_token", seconds=1.2))
    request = rig.request()
    replies = await rig.replies(request)
    assert sum(isinstance(reply, Progress) and reply.phase == "prefill" for reply in replies) >= 2
    assert "".join(reply.text for reply in replies if isinstance(reply, Delta)) == Script.of(request).text(8)


async def test_a_crash_fails_everything_on_the_engine_and_the_next_request_loads_it_again(rig: Rig) -> None:
    node = await rig.node(Fault("none", times=4), Fault("crash"), slots=4, tokens_per_s=5, first_token_delay_s=0.05)
    waiting = [asyncio.ensure_future(rig.ask(rig.request(str(i)))) for i in range(4)]
    await rig.until(lambda: node.running == 4)
    (before,) = node.pool.loaded()
    waiting.append(asyncio.ensure_future(rig.ask(rig.request("crash"))))
    # It waits for a slot; one of those that run is cancelled, and it crashes on getting it.
    await rig.until(lambda: rig.dispatcher.gate.queue.waiting() == 1)
    waiting[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [type(result) for result in results[1:]] == [EngineCrashed] * 4
    assert before not in node.pool.loaded()
    request = rig.request(sampling=Sampling(max_tokens=1))
    assert await rig.ask(request) == Script.of(request).text(1)
    (after,) = node.pool.loaded()
    assert after.instance != before.instance


async def test_a_crashed_node_is_covered_by_another(rig: Rig) -> None:
    await rig.node(Fault("crash", times=None))
    await rig.node()
    for number in range(6):
        request = rig.request(str(number))
        assert await rig.ask(request) == Script.of(request).text(8)


async def test_cancelling_frees_the_slot_at_once(rig: Rig) -> None:
    node = await rig.node(slots=1, tokens_per_s=1)
    first = asyncio.ensure_future(rig.ask(rig.request("first")))
    await rig.until(lambda: node.running == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    began = time.monotonic()
    request = rig.request("second", sampling=Sampling(max_tokens=1))
    assert await rig.ask(request) == Script.of(request).text(1)
    assert time.monotonic() - began < 3, "it takes 8 s to its own end"
    assert node.running == 0


async def test_what_waits_for_a_slot_hears_of_it_and_too_many_are_refused(make_bus: MakeBus) -> None:
    rig = Rig(make_bus)
    await rig.start(stall_timeout_s=STALL_S, queue_max=WAITING)
    node = await rig.node(slots=1, tokens_per_s=10, answer_tokens=40)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(rig.ask(rig.request("first")))
        await rig.until(lambda: node.running == 1)
        await rig.until(lambda: any(view.slots == 1 for view in rig.fleet.nodes()))
        second = group.create_task(rig.replies(rig.request("second", sampling=Sampling(max_tokens=1))))
        queue = rig.dispatcher.gate.queue
        await rig.until(lambda: queue.waiting() == 1)
        rest = [
            group.create_task(rig.ask(rig.request(str(i), sampling=Sampling(max_tokens=1)))) for i in range(WAITING - 1)
        ]
        await rig.until(lambda: queue.waiting() == WAITING)
        assert node.running == 1
        with pytest.raises(QueueFull):
            await rig.ask(rig.request("one too many"))
        await running
        queued = [reply for reply in await second if isinstance(reply, Progress) and reply.phase == "queued"]
    assert len(queued) >= 2
    assert [reply.done for reply in queued] == [0] * len(queued)
    assert all(task.result() for task in rest)
    await rig.close()


async def test_the_operations_of_a_node_work_on_a_shared_connection(rig: Rig) -> None:
    node = await rig.node(slots=3)
    await rig.ask(rig.request())
    listed = await rig.bus.call(subjects.node_rpc(node.node_id, "ps"), ListRunning(), RunningList)
    assert [(model.name, model.state, model.slots) for model in listed.models] == [(rig.model, "ready", 3)]
    await rig.bus.call(subjects.node_rpc(node.node_id, "stop"), StopModel(model=rig.model), ModelStopped)
    assert not node.pool.loaded()
    with pytest.raises(ModelUnknown):
        await rig.bus.call(subjects.node_rpc(node.node_id, "stop"), StopModel(model="x"), ModelStopped)


async def test_a_killed_node_answers_nobody_and_a_stopped_one_says_goodbye(rig: Rig) -> None:
    killed, stopped, good = await rig.node(), await rig.node(), await rig.node()
    await stopped.stop()
    await rig.until(lambda: next(v.state for v in rig.fleet.nodes() if v.node_id == stopped.node_id) == "offline")
    await killed.kill()
    for number in range(4):
        request = rig.request(str(number))
        assert await rig.ask(request) == Script.of(request).text(8)
    assert len(good.pool.loaded()) == 1
    assert next(view.suspect for view in rig.fleet.nodes() if view.node_id == killed.node_id)


async def test_no_name_outside_simulated_is_served(rig: Rig) -> None:
    node = await rig.node()
    with pytest.raises(ModelUnknown):
        await rig.ask(rig.request(model="meta-llama/Llama-3.2-1B"))
    # Even a catalog that lists such a name does not get it past the pool.
    real = node.catalog.resolve(rig.model)
    foreign = type(real)(
        real.info.model_copy(update={"name": f"real/{rig.model[10:]}"}), real.path, None, None, None, {}
    )
    assert isinstance(node.agent.pool, SimulatedPool)
    with pytest.raises(ModelUnknown, match="simulated/"):
        await node.pool.ready(foreign)
    assert node.pool.ready_now(foreign.info.name) is None


async def test_two_hundred_nodes_in_one_process_answer_a_burst_of_four_hundred(
    make_bus: MakeBus, tmp_path: Path
) -> None:
    # A server of its own: the records of 200 nodes would stay in the bucket that the other tests read.
    server = NatsServer(tmp_path / "nats").start()
    try:
        router_bus, nodes_bus = await make_bus(url=server.url, queue_max=400), await make_bus(url=server.url)
        fleet = Fleet(router_bus)
        dispatcher = Dispatcher(router_bus, fleet)
        await fleet.start()
        await dispatcher.start()

        async def ask(number: int) -> bool:
            request = InferRequest(
                request_id=uuid.uuid4().hex,
                model="simulated/tiny",
                kind="chat",
                messages=(ChatMessage(role="user", content=f"question {number}"),),
            )
            text = ""
            async with contextlib.aclosing(dispatcher.stream(request)) as replies:
                async for reply in replies:
                    text += reply.text if isinstance(reply, Delta) else ""
            return text == Script.of(request).text(16)

        spec = SimulatedSpec(tokens_per_s=50, first_token_delay_s=0.05, load_s=0.05, answer_tokens=16)
        async with simulated_nodes(nodes_bus, 200, spec) as nodes, asyncio.timeout(30):
            while sum(view.state == "online" and bool(view.models) for view in fleet.nodes()) < 200:
                await asyncio.sleep(0.02)
            assert all(await asyncio.gather(*(ask(number) for number in range(400))))
            loaded = sum(bool(node.pool.loaded()) for node in nodes)
            assert 5 < loaded <= 200, "a burst wakes more nodes than one, as many as it is worth"
        await fleet.close()
        await nodes_bus.close()
        await router_bus.close()
    finally:
        server.stop()
