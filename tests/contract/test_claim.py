"""A node's claim to its id, over a real bus."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import ConfigError
from llmlb.bus.messages.nodes import Heartbeat
from llmlb.node.claim import SHOWN_S, Claim, is_second
from tests.conftest import MakeBus


def heartbeat(node_id: str, instance: str, beating_s: float | None = 1.0, **more: object) -> Heartbeat:
    base = {
        "node_id": node_id,
        "instance": instance,
        "version": "0",
        "name": "other",
        "machine": "0" * 32,
        "gateway": "127.0.0.1:2",
        "uptime_s": 5,
        "inventory": 1,
        "models_ready": 0,
        "models_total": 0,
        "beating_s": beating_s,
    }
    return Heartbeat.model_validate({**base, **more})


class Claimed:
    """A claim, and the errors with which it gave way."""

    def __init__(self, bus: Bus, node_id: str, instance: str, beating_s: float = 1.0) -> None:
        self.bus, self.node_id, self.instance = bus, node_id, instance
        self.now = 0.0
        self.gave_way: list[ConfigError] = []
        self.claim = Claim(bus, node_id, instance, f"host-{instance}", "Delete it.", clock=lambda: self.now)
        self.claim.beating_s = lambda: beating_s
        self.claim.on_second = self.gave_way.append
        self._beating_s = beating_s

    async def beat(self) -> None:
        if not self.gave_way:
            await self.bus.publish(
                subjects.heartbeat(self.node_id), heartbeat(self.node_id, self.instance, self._beating_s)
            )


async def settled(*buses: Bus) -> None:
    """Everything published so far has been handled: a message after it has."""
    for bus in buses:
        done = asyncio.Event()

        async def end(_: Msg, done: asyncio.Event = done) -> None:
            done.set()

        subscription = await bus.subscribe("test.settled", end)
        for other in buses:
            await other.client.flush()
        await bus.client.publish("test.settled", b"")
        async with asyncio.timeout(10):
            await done.wait()
        await subscription.unsubscribe()
    await asyncio.sleep(0)


async def test_a_node_whose_id_is_taken_does_not_start_and_the_other_one_says_so(make_bus: MakeBus) -> None:
    node_id = uuid.uuid4().hex
    first, second = Claimed(await make_bus(), node_id, "a"), Claimed(await make_bus(), node_id, "b")
    await first.claim.take("127.0.0.1:1")
    assert first.claim.problem() is None
    await first.bus.client.flush()
    with pytest.raises(ConfigError, match=r"runs already, on host-a \(127.0.0.1:1\).*Delete it"):
        await second.claim.take("127.0.0.1:2")
    assert "host-b (127.0.0.1:2)" in (first.claim.problem() or "")
    assert not first.gave_way
    first.now = SHOWN_S + 1
    assert first.claim.problem() is None


async def test_a_node_starts_again_though_its_old_process_hangs_and_cannot_answer(make_bus: MakeBus) -> None:
    node_id = uuid.uuid4().hex
    hung, again = await make_bus(), Claimed(await make_bus(), node_id, "b")

    async def silent(_: Msg) -> None:
        pass

    await hung.subscribe(subjects.identify(node_id), silent)
    await hung.client.flush()
    await again.claim.take("127.0.0.1:2")


async def test_of_two_that_meet_again_the_one_that_beats_for_longer_stays(make_bus: MakeBus) -> None:
    node_id = uuid.uuid4().hex
    longer, shorter = (
        Claimed(await make_bus(), node_id, "z", beating_s=50),
        Claimed(await make_bus(), node_id, "a", beating_s=5),
    )
    await asyncio.gather(longer.claim.take("127.0.0.1:1"), shorter.claim._bus.client.flush())
    # As after a cut of the bus between them: nobody answered the other one's question.
    shorter.claim._gateway = "127.0.0.1:2"
    await shorter.bus.subscribe(subjects.heartbeat(node_id), shorter.claim._on_heartbeat)
    await shorter.bus.client.flush()
    for _ in range(2):
        await longer.beat()
        await shorter.beat()
        await settled(longer.bus, shorter.bus)
    async with asyncio.timeout(10):
        while not shorter.gave_way or longer.claim.problem() is None:
            await asyncio.sleep(0.01)
    assert not longer.gave_way


async def test_the_last_heartbeats_of_the_process_before_are_no_second_node(make_bus: MakeBus) -> None:
    node_id = uuid.uuid4().hex
    again, old = Claimed(await make_bus(), node_id, "b", beating_s=0), await make_bus()
    await again.claim.take("127.0.0.1:2")
    await again.bus.client.flush()
    await old.publish(subjects.heartbeat(node_id), heartbeat(node_id, "old", 1000))
    for _ in range(3):
        await old.publish(subjects.heartbeat(node_id), heartbeat(node_id, "older", 1000, leaving=True))
    await settled(again.bus, old)
    assert not again.gave_way
    assert again.claim.problem() is None


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.booleans())
def test_two_instances_never_both_stay_and_never_both_give_way(one_s: float, other_s: float, old: bool) -> None:
    """``old``: the other one is of a version that only tells its uptime."""
    node_id = "0" * 32
    one = heartbeat(node_id, "a", one_s)
    other = heartbeat(node_id, "b", None, uptime_s=other_s) if old else heartbeat(node_id, "b", other_s)
    assert is_second("a", one_s, other) is not is_second("b", other_s, one)
