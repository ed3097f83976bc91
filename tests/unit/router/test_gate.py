"""The gate over real loads and breakers, with a clock of the test's: who goes, and what a probe leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from llmlb.bus.errors import QueueFull, Unauthenticated
from llmlb.bus.messages.models import ModelInfo
from llmlb.bus.messages.nodes import Heartbeat, LoadedModel
from llmlb.router.breaker import Breakers
from llmlb.router.gate import Gate, Place, Ticket
from llmlb.router.loads import Loads
from llmlb.router.placement import Ask

NODE, OTHER = "a" * 32, "b" * 32
OWN, ALIAS = "own/m", "chat"
ASK = Ask(prompt_tokens=10, max_tokens=10)


class Rig:
    """A gate in front of nodes with one slot each."""

    def __init__(self, *, most: int = 100) -> None:
        self.now = 1000.0
        self.loads = Loads(Breakers(), clock=lambda: self.now)
        self.gate = Gate(self.loads, most=most, timeout_s=1000.0, clock=lambda: self.now)

    def heard(self, node_id: str = NODE, name: str = OWN, *, running: int = 0) -> None:
        """A heartbeat of a node that calls the model ``name``, and also ``chat``."""
        model = ModelInfo(name=name, format="GGUF", architecture="llama", size_bytes=1, source="Local", created_at=0.0)
        loaded = LoadedModel(name=name, ready=True, slots=1, running=running, prefill_tps=1000, decode_tps=100)
        beat = Heartbeat(
            node_id=node_id,
            instance="0" * 12,
            version="0",
            name="n",
            machine="m",
            gateway="g",
            uptime_s=1.0,
            models_ready=1,
            models_total=1,
            inventory=1,
            loaded=(loaded,),
        )
        self.loads.heard(beat, {name: model}, {name: name, ALIAS: name}, usable=True)

    def place(self, model: str = OWN) -> Place:
        place = self.gate.now(model, ASK)
        assert place is not None
        return place

    async def served_until(self, ticket: Ticket, others: list[Ticket], running: Place) -> int:
        """How many of the others had a slot, one after the other, before this ticket."""
        before = 0
        while True:
            self.loads.ended(running[0].node_id, running[1])
            for _ in range(3):
                await asyncio.sleep(0)
            if ticket.turn.done():
                return before
            went = next(other for other in others if other.turn.done())
            others.remove(went)
            running = self.gate.taken(went)
            before += 1


async def test_a_key_that_asks_by_an_alias_waits_one_slot_time_and_not_for_a_whole_line() -> None:
    for early, late in ((OWN, ALIAS), (ALIAS, OWN)):
        rig = Rig()
        rig.heard()
        assert rig.loads.has(late)
        running = rig.place(early)
        crowd = [rig.gate.join(early, "greedy", ASK) for _ in range(20)]
        assert await rig.served_until(rig.gate.join(late, "modest", ASK), crowd, running) <= 1


async def test_lines_of_nodes_that_call_the_model_differently_take_turns() -> None:
    for _ in range(2):
        rig = Rig()
        rig.heard(NODE, OWN)
        rig.heard(OTHER, "other/m", running=1)  # shares only the alias, and is full
        for name in (ALIAS, OWN):
            assert rig.loads.has(name)
        running = rig.place(OWN)
        crowd = [rig.gate.join(OWN, "greedy", ASK) for _ in range(20)]
        assert await rig.served_until(rig.gate.join(ALIAS, "modest", ASK), crowd, running) <= 2


async def test_nobody_goes_past_a_line_by_another_name() -> None:
    rig = Rig()
    rig.heard()
    assert rig.loads.has(ALIAS)
    running = rig.place()
    rig.gate.join(OWN, "first", ASK)
    rig.loads.ended(running[0].node_id, running[1])
    assert rig.gate.now(ALIAS, ASK) is None
    assert rig.gate.waiting(ALIAS) == 1


async def test_who_waits_for_an_alias_that_names_another_model_now_gets_that() -> None:
    rig = Rig()
    rig.heard()
    assert rig.loads.has(ALIAS)
    rig.place()
    first = rig.gate.join(OWN, "a", ASK)
    second = rig.gate.join(ALIAS, "b", ASK)
    rig.heard(NODE, OWN, running=1)
    rig.loads.forget(NODE)
    rig.heard(OTHER, "other/m")
    rig.gate.tick()
    await asyncio.sleep(0)
    assert rig.gate.taken(second)[1] == "other/m"
    assert first.turn.done(), "nobody has that model any more"
    assert not rig.gate.queue.waiting()


async def test_a_probe_that_was_told_busy_is_followed_by_another_one() -> None:
    rig = Rig()
    rig.heard()
    node, name = NODE, rig.place()[1]
    rig.loads.ended(node, name)
    rig.loads.failed(node, name, 0.1)
    rig.now += 1.1
    began = rig.now
    rig.place()
    rig.loads.abandoned(node, name, began)
    rig.loads.ended(node, name)
    assert rig.gate.now(OWN, ASK) is not None


async def test_a_place_that_nobody_took_does_not_stay_the_probe() -> None:
    rig = Rig()
    rig.heard()
    running = rig.place()
    ticket = rig.gate.join(OWN, "k", ASK)
    rig.loads.failed(NODE, OWN, 0.1)
    rig.now += 1.1
    rig.loads.ended(NODE, running[1])
    await asyncio.sleep(0)
    assert ticket.turn.done()
    assert not rig.loads.breakers.allows(NODE, OWN, rig.now), "it is the probe"
    rig.gate.leave(ticket)
    assert rig.loads.breakers.allows(NODE, OWN, rig.now)


async def test_a_ticket_that_was_cancelled_does_not_stay_the_probe() -> None:
    rig = Rig()
    rig.heard()
    running = rig.place()
    ticket = rig.gate.join(OWN, "k", ASK)
    rig.loads.failed(NODE, OWN, 0.1)
    rig.now += 1.1
    ticket.turn.cancel()
    rig.loads.ended(NODE, running[1])
    await asyncio.sleep(0)
    assert rig.loads.breakers.allows(NODE, OWN, rig.now)


async def test_who_is_refused_is_told_when_half_of_the_line_is_through() -> None:
    rig = Rig(most=9)
    rig.heard()
    running = rig.place()
    crowd = [rig.gate.join(OWN, "k", ASK) for _ in range(9)]
    for ticket in crowd[:3]:
        rig.now += 10.0
        rig.loads.ended(running[0].node_id, running[1])
        await asyncio.sleep(0)
        running = rig.gate.taken(ticket)
    for _ in range(3):
        rig.gate.join(OWN, "k", ASK)
    with pytest.raises(QueueFull) as refused:
        rig.gate.join(OWN, "k", ASK)
    assert refused.value.retry_after_s == 45


async def test_those_of_a_revoked_key_wait_no_more_and_the_next_one_goes() -> None:
    rig = Rig()
    rig.heard()
    place = rig.place()
    revoked = [rig.gate.join(OWN, "revoked", ASK) for _ in range(2)]
    other = rig.gate.join(OWN, "other", ASK)
    rig.gate.end_of("revoked", lambda: Unauthenticated("revoked"))
    for ticket in revoked:
        with pytest.raises(Unauthenticated):
            await ticket.turn
        rig.gate.leave(ticket)
    assert rig.gate.waiting(OWN) == 1
    assert await rig.served_until(other, [], place) == 0
