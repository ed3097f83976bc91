"""An answer that loses its node goes on elsewhere, and its client sees one answer. Simulated nodes, a real bus.

A simulated node refuses a continuation that does not belong to the answer, so wrong tokens are found out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llmlb.bus.errors import EngineCrashed, EngineStalled, NodeLost
from llmlb.bus.messages.infer import ChatMessage, Delta, Embedded, End, InferRequest, Sampling
from llmlb.node.engine.simulated import Fault, SimulatedSpec
from llmlb.node.engine.simulated_script import Script
from llmlb.router.call import Call
from llmlb.router.dispatch import ATTEMPTS_MAX, CRASHES_MAX, Dispatcher
from llmlb.router.fleet import Fleet
from tests.conftest import MakeBus
from tests.support.simulated import SimulatedNode

STALL_S = 1.0
TOKENS = 40


class Rig:
    """A fleet and a dispatcher; simulated nodes, each on a connection of its own."""

    def __init__(self, make_bus: MakeBus) -> None:
        self.model = f"simulated/{uuid.uuid4().hex[:12]}"
        self.make_bus = make_bus
        self.nodes: list[SimulatedNode] = []

    async def start(self, **settings: object) -> None:
        self.bus = await self.make_bus(**settings)
        self.fleet = Fleet(self.bus)
        self.dispatcher = Dispatcher(self.bus, self.fleet)
        await self.fleet.start()
        await self.dispatcher.start()

    async def close(self) -> None:
        for node in self.nodes:
            await node.kill()
        await self.dispatcher.close()
        await self.fleet.close()

    async def node(self, *faults: Fault, **spec: Any) -> SimulatedNode:
        base = {"tokens_per_s": 100.0, "answer_tokens": TOKENS, "slots": 64}
        made = SimulatedSpec(**{**base, **spec, "faults": faults})
        node = SimulatedNode(await self.make_bus(stall_timeout_s=STALL_S), made, models=[self.model])
        self.nodes.append(node)
        await node.start()
        await self.until(lambda: any(v.node_id == node.node_id and v.models for v in self.fleet.nodes()))
        pool = node.agent.pool
        pool.release(await pool.ready(node.catalog.resolve(self.model)))
        await self.until(lambda: self.loaded(node.node_id))
        return node

    def loaded(self, node_id: str) -> bool:
        """Whether the gateway knows that the model is in memory there."""
        views = {view.node_id: view for view in self.fleet.nodes()}
        return self.fleet.loads.has(self.model) and self.model in views[node_id].loaded_models

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)

    def request(self, text: str = "hi", **fields: Any) -> InferRequest:
        base: dict[str, Any] = {"model": self.model, "kind": "chat", "sampling": Sampling(seed=3), **fields}
        return InferRequest(request_id=uuid.uuid4().hex, messages=(ChatMessage(role="user", content=text),), **base)

    async def ask(self, request: InferRequest, call: Call | None = None, got: list[int] | None = None) -> str:
        """The text; ``got`` receives the token ids as they come."""
        text = ""
        async with contextlib.aclosing(self.dispatcher.stream(request, call)) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    text += event.text
                    if got is not None:
                        got += event.token_ids
                elif isinstance(event, End):
                    assert event.usage.completion_tokens >= TOKENS
        return text


@pytest.fixture
async def rig(make_bus: MakeBus) -> AsyncIterator[Rig]:
    it = Rig(make_bus)
    await it.start(stall_timeout_s=STALL_S)
    yield it
    await it.close()


def whole(request: InferRequest) -> str:
    return Script.of(request).text(TOKENS)


async def test_a_node_killed_under_32_streams_costs_no_client_anything(rig: Rig) -> None:
    for _ in range(3):
        await rig.node(tokens_per_s=40.0)
    requests = [rig.request(f"stream {n}") for n in range(32)]
    tasks = [asyncio.ensure_future(rig.ask(request)) for request in requests]
    await rig.until(lambda: all(node.running >= 5 for node in rig.nodes))
    await asyncio.sleep(0.3)
    victim = max(rig.nodes, key=lambda node: node.running)
    on_it = victim.running
    killed_at = time.monotonic()
    await victim.kill()
    others = [node for node in rig.nodes if node is not victim]
    await rig.until(lambda: sum(node.running for node in others) >= 31 or all(task.done() for task in tasks))
    took_s = time.monotonic() - killed_at
    assert [await task for task in tasks] == [whole(request) for request in requests]
    assert on_it >= 5
    assert took_s < 5, "resumed while the streams were still running"
    assert sum(rig.dispatcher.metrics.snapshot().migrations.values()) >= 5


@pytest.mark.parametrize("kind", ["crash", "hang", "gap"])
@pytest.mark.parametrize("after", [0, 1, 17, TOKENS - 1])
async def test_an_answer_goes_on_after(rig: Rig, kind: str, after: int) -> None:
    # Its first token takes long enough for the other node to join meanwhile.
    await rig.node(Fault(kind, after_tokens=after), tokens_per_s=2000.0, first_token_delay_s=1.0)  # type: ignore[arg-type]
    request = rig.request()
    first = asyncio.ensure_future(rig.ask(request))
    await rig.until(lambda: first.done() or rig.nodes[0].running > 0)
    await rig.node(tokens_per_s=2000.0)
    assert await first == whole(request)


async def test_the_tokens_that_arrive_are_those_of_one_answer(rig: Rig) -> None:
    for _ in range(4):
        await rig.node(Fault("crash", after_tokens=9), tokens_per_s=2000.0)
    await rig.node(tokens_per_s=2000.0)
    got: list[int] = []
    request = rig.request()
    with contextlib.suppress(EngineCrashed):  # of five nodes it may meet three that crash
        await rig.ask(request, got=got)
    assert tuple(got) == Script.of(request).tokens(len(got))
    assert len(got) >= 9 * CRASHES_MAX


async def test_engines_that_crash_on_a_request_are_not_all_sacrificed_to_it(rig: Rig) -> None:
    for _ in range(4):
        await rig.node(Fault("crash", times=None), tokens_per_s=2000.0)
    with pytest.raises(EngineCrashed):
        await rig.ask(rig.request())
    assert sum(failures(rig).values()) == CRASHES_MAX


async def test_attempts_are_bounded_and_end_in_one_typed_error(rig: Rig) -> None:
    for _ in range(ATTEMPTS_MAX + 2):
        await rig.node(Fault("gap", after_tokens=3, times=None), tokens_per_s=2000.0)
    with pytest.raises(NodeLost, match="gap"):
        await rig.ask(rig.request())
    assert sum(failures(rig).values()) == ATTEMPTS_MAX


def failures(rig: Rig) -> dict[str, int]:
    return dict(rig.dispatcher.metrics.snapshot().attempt_failures)


async def test_a_request_that_must_not_be_retried_is_not(rig: Rig) -> None:
    bad = await rig.node(Fault("crash", after_tokens=3, times=None), tokens_per_s=2000.0)
    request = rig.request()
    task = asyncio.ensure_future(rig.ask(request, Call(no_retry=True)))
    await rig.until(lambda: task.done() or bad.running > 0)
    await rig.node()
    with pytest.raises(EngineCrashed):
        await task


async def test_a_node_that_drains_past_its_time_hands_its_answers_over(rig: Rig) -> None:
    first = await rig.node(tokens_per_s=20.0)
    request = rig.request()
    task = asyncio.ensure_future(rig.ask(request))
    await rig.until(lambda: first.running > 0)
    await asyncio.sleep(0.3)
    await rig.node(tokens_per_s=2000.0)
    await first.stop(drain_s=0.1)
    assert await task == whole(request)


async def test_a_node_that_fails_fast_does_not_attract_the_traffic(rig: Rig) -> None:
    bad = await rig.node(Fault("crash", times=None), tokens_per_s=2000.0)
    await rig.node(tokens_per_s=2000.0)
    await rig.node(tokens_per_s=2000.0)
    requests = [rig.request(f"ask {n}") for n in range(40)]
    for request in requests:
        assert await rig.ask(request) == whole(request)
    assert failures(rig)["engine_crashed"] <= 8
    assert bad.running == 0


async def test_busy_nodes_are_passed_over_and_waited_for(rig: Rig) -> None:
    await rig.node(Fault("busy", times=2), tokens_per_s=2000.0)
    request = rig.request()
    assert await rig.ask(request) == whole(request)


async def test_vectors_are_made_once_each_when_the_node_dies_between_them(rig: Rig) -> None:
    bad = await rig.node(Fault("crash", after_tokens=2), first_token_delay_s=1.0)
    request = rig.request(kind="embedding", inputs=tuple(f"text {n}" for n in range(5)))

    async def vectors() -> list[int]:
        async with contextlib.aclosing(rig.dispatcher.stream(request)) as stream:
            return [event.index async for event in stream if isinstance(event, Embedded)]

    task = asyncio.ensure_future(vectors())
    await rig.until(lambda: task.done() or bad.running > 0)
    await rig.node()
    assert sorted(await task) == [0, 1, 2, 3, 4]


async def test_silence_everywhere_is_one_typed_error(rig: Rig) -> None:
    for _ in range(2):
        await rig.node(Fault("hang", after_tokens=2, times=None), tokens_per_s=2000.0)
    began = time.monotonic()
    with pytest.raises(EngineStalled):
        await rig.ask(rig.request())
    assert time.monotonic() - began >= 2 * STALL_S * 0.9


async def test_two_gateways_share_the_same_nodes_and_either_may_go(rig: Rig) -> None:
    node = await rig.node(tokens_per_s=50.0)
    other = Rig(rig.make_bus)
    other.model = rig.model
    await other.start(stall_timeout_s=STALL_S)
    await rig.until(lambda: other.fleet.loads.has(rig.model))
    mine, theirs = rig.request("mine"), rig.request("theirs")
    tasks = [asyncio.ensure_future(rig.ask(mine)), asyncio.ensure_future(other.ask(theirs))]
    await rig.until(lambda: node.running == 2)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    await other.close()
    assert await tasks[0] == whole(mine)
