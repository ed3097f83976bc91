"""Requests on a node whose reader goes away, whose time is over, whose answer is too large, or that end early."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import Accepted, CancelRequest, ChatMessage, Failed, InferReply, InferRequest
from llmlb.node import readers
from llmlb.node.agent import NodeAgent
from llmlb.node.engine.simulated import SimulatedSpec
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer
from tests.support.simulated import SimulatedNode

MODEL = "simulated/flights"
SOON_S = 0.05


class Gateway:
    """Asks a node as a gateway does, and reads all its replies through one subscription."""

    def __init__(self, bus: Bus, node_id: str) -> None:
        self.id = uuid.uuid4().hex
        self.replies: list[InferReply] = []
        self._bus, self._node_id = bus, node_id
        self._nobody = False

    async def start(self) -> Gateway:
        self._subscription = await self._bus.subscribe(subjects.all_replies(self.id), self._on_reply)
        return self

    async def _on_reply(self, msg: Msg) -> None:
        if msg.data:
            self.replies.append(codec.decode_reply(msg.data))
        elif (msg.headers or {}).get("Status") == "503":
            self._nobody = True  # the node's subscription is another connection's, and on its way

    async def ask(self, **fields: Any) -> InferRequest:
        request = InferRequest(
            request_id=uuid.uuid4().hex,
            **{"model": MODEL, "kind": "chat", "messages": (ChatMessage(role="user", content="hi"),), **fields},
        )
        before = len(self.replies)
        while True:
            self._nobody = False
            await self._bus.publish(subjects.infer(self._node_id), request, reply=subjects.reply(self.id, "1"))
            await until(lambda: self._nobody or len(self.replies) > before)
            if not self._nobody:
                return request

    async def accepted(self) -> None:
        await until(lambda: any(isinstance(reply, Accepted) for reply in self.replies))

    async def failure(self) -> Failed:
        await until(lambda: any(isinstance(reply, Failed) for reply in self.replies))
        failed = self.replies[-1]
        assert isinstance(failed, Failed)
        assert [reply.seq for reply in self.replies] == list(range(len(self.replies))), "no gap before it"
        return failed

    async def die(self) -> None:
        """As kill -9: nothing is cancelled."""
        await self._subscription.unsubscribe()
        await self._bus.client.flush()


async def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


class Rig:
    def __init__(self, bus: Bus, other: Bus) -> None:
        self.bus, self._other = bus, other
        self._nodes: list[SimulatedNode] = []

    async def node(self, **spec: Any) -> SimulatedNode:
        made = SimulatedSpec(**{"tokens_per_s": 20.0, "answer_tokens": 100_000, "slots": 1, **spec})
        node = SimulatedNode(self._other, made, models=[MODEL])
        self._nodes.append(node)
        await node.start()
        return node

    async def gateway(self, node: SimulatedNode) -> Gateway:
        return await Gateway(self.bus, node.node_id).start()

    async def close(self) -> None:
        for node in self._nodes:
            await node.kill()


@pytest.fixture
async def rig(make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(readers, "EVERY_S", SOON_S)
    monkeypatch.setattr(readers, "SETTLE_S", 0.0)
    it = Rig(await make_bus(), await make_bus())
    yield it
    await it.close()


def flights(node: SimulatedNode) -> int:
    agent: NodeAgent = node.agent
    return len(agent._flights)


def busy(node: SimulatedNode) -> int:
    """Requests that the engine has."""
    return sum(len(loaded.handles) for loaded in node.agent.pool.loaded())


async def test_what_a_gateway_that_was_killed_had_asked_for_is_given_up(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    node = await rig.node()
    lives, dies = await rig.gateway(node), await rig.gateway(node)
    await dies.ask()
    await dies.ask()
    await dies.accepted()
    await lives.ask()
    await lives.accepted()
    assert flights(node) == 3
    await dies.die()
    await until(lambda: flights(node) == 1)
    await until(lambda: busy(node) == 1)
    before = len(lives.replies)
    await until(lambda: len(lives.replies) > before + 2)
    assert flights(node) == 1, "one that is read goes on"
    assert caplog.text.count("gateway_gone") == 1


async def test_after_the_bus_was_away_a_gateway_has_time_to_come_back(
    tmp_path: Path, make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "EVERY_S", SOON_S)
    server = NatsServer(tmp_path / "nats").start()
    bus, nodes = await make_bus(url=server.url), await make_bus(url=server.url)
    rig = Rig(bus, nodes)
    try:
        monkeypatch.setattr(readers, "SETTLE_S", 0.0)
        node = await rig.node(load_s=600.0)  # what can't be sent ends a request, too: this one says nothing
        gateway = await rig.gateway(node)
        await gateway.ask()
        await gateway.accepted()
        monkeypatch.setattr(readers, "SETTLE_S", 3600.0)
        looks = looked(node, monkeypatch)
        server.kill()
        await until(lambda: not nodes.connected)
        server.start()
        await until(lambda: nodes.connected and bus.connected)
        await gateway.die()
        seen = looks()
        await until(lambda: looks() > seen + 5)
        assert flights(node) == 1
        monkeypatch.setattr(readers, "SETTLE_S", 0.0)
        await until(lambda: flights(node) == 0)
    finally:
        await rig.close()
        await bus.close()
        await nodes.close()
        server.stop()


def looked(node: SimulatedNode, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the node has looked for its readers."""
    look, count = node.agent._readers.look, 0

    async def counted(now: float) -> None:
        nonlocal count
        await look(now)
        count += 1

    monkeypatch.setattr(node.agent._readers, "look", counted)
    return lambda: count


async def test_a_request_ends_when_its_time_is_over(rig: Rig) -> None:
    node = await rig.node(first_token_delay_s=600.0)
    gateway = await rig.gateway(node)
    await gateway.ask(deadline_ms=50)
    assert (await gateway.failure()).error.reason == "deadline_exceeded"
    await until(lambda: busy(node) == 0)
    assert flights(node) == 0


async def test_a_request_that_waits_for_its_model_ends_when_its_time_is_over(rig: Rig) -> None:
    node = await rig.node(load_s=600.0)
    gateway = await rig.gateway(node)
    await gateway.ask(deadline_ms=50)
    assert (await gateway.failure()).error.reason == "deadline_exceeded"
    assert flights(node) == 0


async def test_a_deadline_that_is_far_away_is_none(rig: Rig) -> None:
    node = await rig.node(tokens_per_s=2000.0, answer_tokens=4)
    gateway = await rig.gateway(node)
    await gateway.ask(deadline_ms=2**62)
    await until(lambda: bool(gateway.replies) and gateway.replies[-1].type == "llmlb.infer.end.v1")
    assert flights(node) == 0


async def test_an_answer_that_is_too_large_for_the_bus_is_an_error_and_no_silence(rig: Rig) -> None:
    node = await rig.node()
    gateway = await rig.gateway(node)
    await gateway.ask()
    await gateway.accepted()
    (handle,) = node.agent._flights
    await node.agent._on_reply(handle, b"x" * (rig.bus.client.max_payload + 1), last=False)
    error = (await gateway.failure()).error
    assert (error.reason, "ask for less at once" in error.message) == ("invalid_request", True)
    await until(lambda: busy(node) == 0)
    assert flights(node) == 0


async def test_even_the_last_reply_may_be_too_large(rig: Rig) -> None:
    node = await rig.node()
    gateway = await rig.gateway(node)
    await gateway.ask()
    await gateway.accepted()
    (handle,) = node.agent._flights
    await node.agent._on_reply(handle, b"x" * (rig.bus.client.max_payload + 1), last=True)
    assert (await gateway.failure()).error.reason == "invalid_request"


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_cancel_while_a_request_is_accepted_frees_its_slot(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    node = await rig.node()
    gateway = await rig.gateway(node)
    if loaded:
        await gateway.ask()
        await until(lambda: busy(node) == 1)
        await rig.bus.publish(subjects.cancel(node.node_id), CancelRequest(request_id=only(node)))
        await until(lambda: flights(node) == 0)
    agent = node.agent
    send, held, went_on = agent._send, asyncio.Event(), asyncio.Event()

    async def slowly(flight: Any, message: InferReply) -> None:
        await send(flight, message)
        if isinstance(message, Accepted):
            held.set()
            await went_on.wait()

    monkeypatch.setattr(agent, "_send", slowly)
    await gateway.ask()
    await held.wait()
    agent._give_up(next(iter(agent._flights.values())))
    went_on.set()
    await until(lambda: flights(node) == 0)
    assert busy(node) == 0
    assert agent._idle.is_set()
    monkeypatch.setattr(agent, "_send", send)
    await gateway.ask()
    await until(lambda: busy(node) == 1, 20)


async def test_a_request_that_a_drain_has_failed_meanwhile_is_not_handed_to_the_engine(rig: Rig) -> None:
    node = await rig.node(load_s=0.2)
    gateway = await rig.gateway(node)
    await gateway.ask()
    await gateway.accepted()
    (flight,) = node.agent._flights.values()
    assert flight.waiting is not None
    await node.agent._fail(flight, LlmlbError("the node is shutting down"))
    await until(lambda: flight.waiting is None)
    assert busy(node) == 0
    assert node.agent.pool.expires_in_s(MODEL) is not None, "nothing holds the model"


def only(node: SimulatedNode) -> str:
    (flight,) = node.agent._flights.values()
    return flight.request_id
