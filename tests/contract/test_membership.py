"""Membership over a real bus: hand-made heartbeats, one or two routers, and a bucket that somebody else writes too."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats.js.errors
import pytest

from llmlb.bus import codec, subjects
from llmlb.bus.errors import BusDown, Conflict, InvalidRequest, NodeUnknown
from llmlb.bus.join import digest_of, proof_of, token_id_of
from llmlb.bus.machine import machine_digest
from llmlb.bus.messages.events import NodeStateChanged
from llmlb.bus.messages.models import ListModels, ModelList
from llmlb.bus.messages.nodes import Heartbeat
from llmlb.bus.messages.router import ChangeNode, JoinToken, MakeJoinToken
from llmlb.router.mirror import Mirror
from tests.conftest import MakeBus
from tests.support.membership import HandMade, Rig, Router, until
from tests.support.natsd import NatsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A bus of its own, because a bus has one cluster."""
    it = NatsServer(tmp_path / "nats").start()
    yield it
    it.stop()


@pytest.fixture
async def rig(server: NatsServer, make_bus: MakeBus) -> AsyncIterator[Rig]:
    it = Rig(server, make_bus)
    it.nodes = await it.bus()
    yield it
    await it.close()


async def test_an_approval_at_one_router_is_seen_by_the_other_without_a_heartbeat(rig: Rig) -> None:
    one, other, node = await rig.router(), await rig.router(), HandMade(rig.nodes)
    await node.beat_until(lambda: one.state(node.node_id) == other.state(node.node_id) == "pending", "heard by both")
    view = one.view(node.node_id)
    assert view is not None
    assert view.problem is not None
    assert "approval" in view.problem
    assert (await one.control.approve(node.node_id[:10])).node_id == node.node_id
    assert one.state(node.node_id) == "registering"
    await until(lambda: other.state(node.node_id) == "registering", "the other router knows")
    await node.beat_until(lambda: one.usable(node.node_id) and other.usable(node.node_id), "online at both")


async def test_a_rejected_node_stays_out_even_from_the_routers_own_machine(rig: Rig) -> None:
    one, other, node = await rig.router(), await rig.router(), HandMade(rig.nodes, machine=machine_digest())
    await node.beat_until(lambda: one.usable(node.node_id) and other.usable(node.node_id), "online at both")
    await other.control.change(ChangeNode(node=node.node_id, action="reject"))
    await until(lambda: not one.usable(node.node_id), "rejected at the first router")
    await node.beat()
    await node.beat_until(lambda: (v := one.view(node.node_id)) and v.rejected, "shown as rejected")
    assert one.state(node.node_id) == "pending"
    later = await rig.router()
    await node.beat_until(lambda: later.state(node.node_id) == "pending", "rejected for a router that starts later")
    await one.control.approve(node.node_id)
    await node.beat_until(lambda: later.usable(node.node_id), "approved again")


async def test_a_drained_node_gets_no_work_until_it_is_undrained_whichever_router_starts_anew(rig: Rig) -> None:
    one, node = await rig.router(), HandMade(rig.nodes, machine=machine_digest())
    await node.beat_until(lambda: one.usable(node.node_id), "online")
    await one.control.change(ChangeNode(node=node.node_id, action="drain"))
    view = one.view(node.node_id)
    assert view is not None
    assert (view.state, view.draining) == ("online", True)
    assert not one.usable(node.node_id)
    await one.fleet.close()
    later = await rig.router()
    await node.beat_until(lambda: later.state(node.node_id) == "online", "online")
    assert not later.usable(node.node_id)
    await later.control.change(ChangeNode(node=node.node_id, action="undrain"))
    assert later.usable(node.node_id)


async def test_labels_are_the_nodes_own_and_those_of_the_admin(rig: Rig) -> None:
    one, other, node = await rig.router(), await rig.router(), HandMade(rig.nodes)
    await node.beat_until(
        lambda: one.state(node.node_id) == other.state(node.node_id) == "pending", "heard", labels=["gpu", "b=1"]
    )
    await one.control.change(ChangeNode(node=node.node_id, action="label", labels=("zone=b", "gpu")))
    for router in (one, other):
        await until(lambda router=router: router.view(node.node_id).labels == ("gpu", "b=1", "zone=b"), "labelled")
    with pytest.raises(InvalidRequest, match="no label"):
        await one.control.change(ChangeNode(node=node.node_id, action="label", labels=("a b",)))
    await one.control.change(ChangeNode(node=node.node_id, action="label"))
    view = one.view(node.node_id)
    assert view is not None
    assert view.labels == ("gpu", "b=1")


async def test_a_beginning_of_an_id_that_fits_none_or_several_is_refused(rig: Rig) -> None:
    one = await rig.router()
    nodes = [HandMade(rig.nodes, node_id=f"ab{number}" + "0" * 29) for number in range(2)]
    for node in nodes:
        await node.beat_until(lambda node=node: one.view(node.node_id), "heard")
    with pytest.raises(NodeUnknown, match="begins with 'cd'"):
        await one.control.approve("cd")
    with pytest.raises(NodeUnknown):
        await one.control.approve("")
    with pytest.raises(InvalidRequest, match="stands for 2 nodes"):
        await one.control.remove("ab")


async def test_a_removed_node_is_gone_everywhere_and_new_when_it_is_heard_again(rig: Rig) -> None:
    one, other, node = await rig.router(), await rig.router(), HandMade(rig.nodes)
    await node.beat_until(lambda: one.state(node.node_id) == other.state(node.node_id) == "pending", "heard")
    await one.control.approve(node.node_id)
    await node.beat_until(lambda: other.usable(node.node_id), "online")
    await other.control.remove(node.node_id)
    assert other.view(node.node_id) is None
    await until(lambda: one.view(node.node_id) is None, "gone at the first router too")
    later = await rig.router()
    assert later.view(node.node_id) is None
    await node.beat_until(lambda: one.state(node.node_id) == other.state(node.node_id) == "pending", "new")


async def test_a_join_token_lets_in_as_many_nodes_as_it_says_with_two_routers_racing(rig: Rig) -> None:
    routers = [await rig.router(), await rig.router()]
    made = await routers[0].control.make_join_token(MakeJoinToken(name="rack 7", uses=3))
    digest = digest_of(made.token)
    assert token_id_of(digest) == made.token_id
    nodes = [HandMade(rig.nodes) for _ in range(6)]
    for node in nodes:
        node.fields["join_token"] = proof_of(digest, node.node_id)
    inside = 0
    async with asyncio.timeout(15):
        while inside < 3 or any(not self_known(router, nodes) for router in routers):
            for node in nodes:
                await node.beat()
            await asyncio.sleep(0.05)
            inside = sum(routers[0].state(node.node_id) == "online" for node in nodes)
    for _ in range(5):
        for node in nodes:
            await node.beat()
        await asyncio.sleep(0.02)
    for router in routers:
        await until(lambda router=router: sum(router.state(n.node_id) == "online" for n in nodes) == 3, "three are in")
        out = [view for view in router.fleet.nodes() if view.state == "pending"]
        assert len(out) == 3
    problems = {view.problem for router in routers for view in router.fleet.nodes() if view.state == "pending"}
    assert "its join token is used up" in problems
    kept = await rig.nodes.client.jetstream().key_value(subjects.BUCKET_SETTINGS)
    value = (await kept.get(subjects.join_token_key(made.token_id))).value or b""
    assert made.token.encode() not in value, "only a digest is kept"
    assert codec.decode_as(JoinToken, value).uses_left == 0


def self_known(router: Router, nodes: list[HandMade]) -> bool:
    return all(router.view(node.node_id) is not None for node in nodes)


async def test_a_join_token_that_is_unknown_or_expired_or_of_another_node_lets_nobody_in(rig: Rig) -> None:
    one = await rig.router()
    now = [1_000_000.0]
    one.fleet.members.tokens._clock = lambda: now[0]
    made = await one.control.make_join_token(MakeJoinToken(expires_in_s=60))
    good, stolen, unknown, late = (HandMade(rig.nodes) for _ in range(4))
    proof = proof_of(digest_of(made.token), good.node_id)
    await good.beat_until(lambda: one.usable(good.node_id), "let in", join_token=proof)
    await stolen.beat_until(lambda: one.view(stolen.node_id), "heard", join_token=proof)
    wrong = proof_of(digest_of("x" * 20), unknown.node_id)
    await unknown.beat_until(
        lambda: problem(one, unknown) == "its join token is unknown here", "told", join_token=wrong
    )
    await stolen.beat_until(lambda: problem(one, stolen) == "its join token is unknown here", "told", join_token=proof)
    now[0] += 61
    proof = proof_of(digest_of(made.token), late.node_id)
    await late.beat_until(lambda: problem(one, late) == "its join token has expired", "told", join_token=proof)
    assert one.usable(good.node_id), "who is in stays in"


def problem(router: Router, node: HandMade) -> str | None:
    view = router.view(node.node_id)
    return None if view is None else view.problem


async def test_a_rejected_node_does_not_come_in_by_a_token(rig: Rig) -> None:
    one, node = await rig.router(), HandMade(rig.nodes)
    await node.beat_until(lambda: one.view(node.node_id), "heard")
    await one.control.change(ChangeNode(node=node.node_id, action="reject"))
    made = await one.control.make_join_token(MakeJoinToken(uses=1))
    node.fields["join_token"] = proof_of(digest_of(made.token), node.node_id)
    friend = HandMade(rig.nodes)
    friend.fields["join_token"] = proof_of(digest_of(made.token), friend.node_id)
    await node.beat()
    await friend.beat_until(lambda: one.usable(friend.node_id), "the token works for another node")
    assert one.state(node.node_id) == "pending"


async def test_what_two_routers_write_into_one_record_at_once_is_all_there(rig: Rig) -> None:
    one, other, node = await rig.router(), await rig.router(), HandMade(rig.nodes)
    await node.beat_until(lambda: one.state(node.node_id) == other.state(node.node_id) == "pending", "heard")
    for turn in range(10):
        await asyncio.gather(
            one.control.change(ChangeNode(node=node.node_id, action="label", labels=(f"turn={turn}",))),
            other.control.change(ChangeNode(node=node.node_id, action="undrain" if turn % 2 else "drain")),
            node.beat(gateway=f"127.0.0.1:{turn}"),
        )
        drained = turn % 2 == 0
        for router in (one, other):
            await until(
                lambda router=router, turn=turn, drained=drained: (
                    (r := router.fleet.members.record(node.node_id)) is not None
                    and (r.labels, r.drained, r.gateway) == ((f"turn={turn}",), drained, f"127.0.0.1:{turn}")
                ),
                f"both changes of turn {turn}",
            )


async def test_a_write_that_always_loses_is_a_conflict_and_a_refused_one_is_not_believed(rig: Rig) -> None:
    seen: list[tuple[str, bytes | None]] = []
    bus = await rig.bus()
    mirror, winner = (Mirror(bus, subjects.BUCKET_SETTINGS, lambda k, v: seen.append((k, v))) for _ in range(2))
    await mirror.start()
    await winner.start()
    number = 0

    def change(_: bytes | None) -> bytes:
        nonlocal number
        number += 1
        js.publish_soon(number)
        return b"mine"

    class Js:
        """Another writer that is always faster: it has written before this one does."""

        tasks: list[asyncio.Task[Any]] = []

        def publish_soon(self, value: int) -> None:
            self.tasks.append(asyncio.ensure_future(winner.edit("k", lambda _: b"%d" % value)))

    js = Js()
    real = mirror._write

    async def late(key: str, value: bytes | None, revision: int) -> None:
        await asyncio.gather(*js.tasks)
        await real(key, value, revision)

    mirror._write = late  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        await mirror.edit("k", change)
    await until(lambda: mirror.get("k") == b"%d" % number, "what the winner wrote")
    assert ("k", b"mine") not in seen
    await mirror.close()
    await winner.close()


async def test_of_two_nodes_with_one_id_the_second_one_is_ignored_and_said_to_be(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    one = await rig.router()
    first = HandMade(rig.nodes, machine=machine_digest())
    second = HandMade(rig.nodes, machine=machine_digest(), node_id=first.node_id)
    second.fields |= {"name": "the-copy", "gateway": "127.0.0.1:2"}
    await first.beat_until(lambda: one.usable(first.node_id), "online")
    async with asyncio.timeout(10):
        while "home directory is a copy" not in (problem(one, first) or ""):
            await second.beat()
            await first.beat()
            await asyncio.sleep(0.02)
    await second.beat()
    await first.beat(running=7)
    await until(lambda: (v := one.view(first.node_id)) is not None and v.running == 7, "the first one's heartbeat")
    view = one.view(first.node_id)
    assert view is not None
    assert (view.name, view.gateway) == ("hand-made", "127.0.0.1:1")
    assert sum("two_nodes_with_one_id" in record.message for record in caplog.records) == 1
    await second.beat(leaving=True)
    await first.beat()
    await until(lambda: problem(one, first) is None, "the second one left")
    assert one.usable(first.node_id), "its goodbye is not the node's"


async def test_a_restarted_node_is_the_same_node_at_another_address(rig: Rig) -> None:
    one, node = await rig.router(), HandMade(rig.nodes)
    await node.beat_until(lambda: one.view(node.node_id), "heard")
    await one.control.approve(node.node_id)
    await node.beat_until(lambda: one.usable(node.node_id), "online")
    again = HandMade(rig.nodes, node_id=node.node_id)
    again.fields["gateway"] = "10.0.0.9:32769"
    await again.beat_until(lambda: (v := one.view(node.node_id)) and v.gateway == "10.0.0.9:32769", "its new address")
    assert one.usable(node.node_id)
    assert problem(one, node) is None
    later = await rig.router()
    await until(lambda: (r := later.fleet.members.record(node.node_id)) and r.gateway == "10.0.0.9:32769", "kept")


@pytest.mark.parametrize("skew_s", [-10 * 365 * 86400.0, 10 * 365 * 86400.0])
async def test_the_clock_of_a_node_decides_nothing(rig: Rig, skew_s: float) -> None:
    one, node = await rig.router(), HandMade(rig.nodes, machine=machine_digest())
    await node.beat_until(lambda: one.usable(node.node_id), "online", sent_at=time.time() + skew_s)
    view = one.view(node.node_id)
    assert view is not None
    assert 0 <= view.last_heartbeat_age_s < 5
    assert not view.metrics_stale
    later = await rig.router()
    remembered = later.view(node.node_id)
    assert remembered is not None
    assert remembered.last_heartbeat_age_s >= 0


async def test_a_heartbeat_on_the_subject_of_another_node_is_dropped(rig: Rig) -> None:
    one, node, other = await rig.router(), HandMade(rig.nodes), HandMade(rig.nodes)
    message = Heartbeat.model_validate(other.fields)
    await rig.nodes.publish(subjects.heartbeat(node.node_id), message)
    await node.beat_until(lambda: one.view(node.node_id), "heard")
    assert one.view(other.node_id) is None


async def test_a_thousand_nodes_join_at_once_and_both_routers_keep_up(rig: Rig) -> None:
    one, other = await rig.router(), await rig.router()
    nodes = [HandMade(rig.nodes, machine=machine_digest()) for _ in range(1000)]
    for node in nodes:
        await node.beat()
    for router in (one, other):
        await until(lambda router=router: all(router.usable(node.node_id) for node in nodes[-10:]), "the last ones", 30)
        assert sum(router.state(node.node_id) == "online" for node in nodes[::100]) == 10
    watched = nodes[0]
    await watched.beat(running=5)
    await until(lambda: one.view(watched.node_id).running == 5, "a heartbeat is heard while records are written")  # type: ignore[union-attr]

    def whole(router: Router) -> bool:
        records = router.fleet.members.records()
        return all((r := records.get(node.node_id)) and r.approved and r.online_instance for node in nodes)

    await until(lambda: whole(one) and whole(other), "every record is written and known to both", 60)
    later = await rig.router()
    assert whole(later), "read at the start"


async def test_a_router_that_starts_anew_does_not_take_a_serving_node_out(rig: Rig) -> None:
    one, node = await rig.router(), HandMade(rig.nodes, machine=machine_digest())
    await node.beat_until(lambda: one.usable(node.node_id), "online")
    await node.beat_until(
        lambda: (r := one.fleet.members.record(node.node_id)) and r.online_instance, "kept that it was online"
    )
    later = await rig.router()
    await node.beat_until(lambda: later.usable(node.node_id), "still online", models_ready=1, models_total=2)
    again = HandMade(rig.nodes, machine=machine_digest(), node_id=node.node_id)
    last = await rig.router()
    await again.beat_until(lambda: last.state(node.node_id) == "registering", "anew", models_ready=1, models_total=2)


async def test_a_bus_that_lost_its_store_is_filled_again_by_the_routers_that_live(rig: Rig, tmp_path: Path) -> None:
    one, node = await rig.router(), HandMade(rig.nodes)
    await node.beat_until(lambda: one.view(node.node_id), "heard")
    await one.control.approve(node.node_id)
    await one.control.change(ChangeNode(node=node.node_id, action="label", labels=("kept",)))
    made = await one.control.make_join_token(MakeJoinToken())
    await node.beat_until(lambda: one.usable(node.node_id), "online")
    rig.server.kill()
    shutil.rmtree(tmp_path / "nats" / "store")
    rig.server.start()
    await until(lambda: one.bus.connected and rig.nodes.connected, "reconnected")
    await node.beat_until(lambda: one.usable(node.node_id), "online again")

    async def restored() -> bool:
        later = await rig.router()
        record = later.fleet.members.record(node.node_id)
        return record is not None and record.approved and record.labels == ("kept",)

    async with asyncio.timeout(15):
        while not await restored():
            await asyncio.sleep(0.2)
    newcomer = HandMade(rig.nodes)
    proof = proof_of(digest_of(made.token), newcomer.node_id)
    await newcomer.beat_until(lambda: one.usable(newcomer.node_id), "the token is still good", join_token=proof)


async def test_a_decision_is_refused_at_once_while_the_bus_is_away(rig: Rig) -> None:
    one, node = await rig.router(), HandMade(rig.nodes)
    await node.beat_until(lambda: one.state(node.node_id) == "pending", "heard")
    rig.server.kill()
    await until(lambda: not one.bus.connected, "the bus is away")
    with pytest.raises(BusDown):
        await one.control.approve(node.node_id)
    assert one.state(node.node_id) == "pending"


async def test_changes_made_while_a_router_was_cut_off_are_seen_when_it_is_back(rig: Rig) -> None:
    one, other, node = await rig.router(), await rig.router(), HandMade(rig.nodes)
    gone = HandMade(rig.nodes)
    for each in (node, gone):
        await each.beat_until(
            lambda each=each: one.state(each.node_id) == other.state(each.node_id) == "pending", "heard"
        )
    mirror = other.fleet.members._mirror
    assert mirror._subscription is not None
    await mirror._subscription.unsubscribe()  # deaf for changes, as if they had been lost on the way
    await one.control.approve(node.node_id)
    await one.control.remove(gone.node_id)
    assert other.state(node.node_id) == "pending"
    await mirror._back_again()
    await until(lambda: other.state(node.node_id) == "registering", "approved")
    await until(lambda: other.view(gone.node_id) is None, "removed, not put back")


async def test_the_state_of_nodes_goes_to_the_events_once_though_two_routers_see_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmlb.router.announcer.ALIKE_S", 1e12)
    one, other, node = await rig.router(), await rig.router(), HandMade(rig.nodes, machine=machine_digest())
    await node.beat_until(lambda: one.usable(node.node_id) and other.usable(node.node_id), "online at both")
    last = HandMade(rig.nodes, machine=machine_digest())
    await last.beat_until(lambda: one.usable(last.node_id) and other.usable(last.node_id), "online at both")
    js = rig.nodes.client.jetstream()
    seen: list[tuple[str | None, str]] = []
    ends: set[str] = set()
    number = 0
    async with asyncio.timeout(10):
        while len(ends) < 1 or any(router.fleet.members._announcer._waiting for router in (one, other)):
            with contextlib.suppress(nats.js.errors.NotFoundError):
                msg = await js.get_msg(subjects.STREAM_EVENTS, number + 1)
                event = codec.decode_as(NodeStateChanged, msg.data or b"")
                number += 1
                if event.node_id == node.node_id:
                    seen.append((event.before, event.after))
                elif event.after == "online":
                    ends.add(event.node_id)
    assert len(seen) == len(set(seen)), seen
    assert ("registering", "online") in seen


async def test_a_node_that_is_asked_for_its_models_serves_them(rig: Rig, make_bus: MakeBus) -> None:
    """The seam between membership and the fleet: a node that is let in is asked and used."""
    one, node = await rig.router(), HandMade(rig.nodes)

    async def listed(_: ListModels) -> ModelList:
        return ModelList(models=(), inventory=1)

    await make_bus(
        lambda bus: bus.handle(subjects.node_rpc(node.node_id, "list"), ListModels, ModelList, listed),
        url=rig.server.url,
    )
    await node.beat_until(lambda: one.view(node.node_id), "heard")
    await one.control.approve(node.node_id)
    await node.beat_until(lambda: one.usable(node.node_id), "online")
