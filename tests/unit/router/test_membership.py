from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.join import digest_of, new_token, proof_of, proves, token_id_of
from llmlb.router.instances import Instances
from llmlb.router.membership import Membership, Transition

A = "a" * 32


def beat(m: Membership, now: float, *, approved: bool = True, ready: int = 1, total: int = 1) -> list[Transition]:
    return m.heartbeat(A, now, approved=approved, ready=ready, total=total)


def steps(moved: list[Transition]) -> list[tuple[str | None, str]]:
    return [(step.before, step.after) for step in moved]


def test_an_approved_node_is_online_with_its_first_heartbeat() -> None:
    m = Membership()
    assert steps(beat(m, 0)) == [(None, "pending"), ("pending", "registering"), ("registering", "online")]


def test_a_node_waits_for_approval_and_then_for_its_models() -> None:
    m = Membership()
    assert steps(beat(m, 0, approved=False)) == [(None, "pending")]
    assert beat(m, 1, approved=False) == []
    assert steps(m.decide(A, approved=True)) == [("pending", "registering")]
    assert m.decide(A, approved=True) == []
    assert beat(m, 2, ready=0, total=2) == []
    assert m.state(A) == "registering"
    assert steps(beat(m, 3, ready=2, total=2)) == [("registering", "online")]


def test_a_node_that_is_online_stays_so_when_another_model_is_registered_for_it() -> None:
    m = Membership()
    beat(m, 0, ready=1, total=1)
    assert beat(m, 1, ready=1, total=2) == []
    assert m.state(A) == "online"


def test_a_node_that_starts_again_has_to_be_ready_anew() -> None:
    m = Membership()
    beat(m, 0)
    assert steps(m.restarted(A)) == [("online", "registering")]
    assert beat(m, 1, ready=1, total=2) == []
    assert steps(beat(m, 2, ready=2, total=2)) == [("registering", "online")]


def test_a_node_whose_approval_is_taken_back_waits_again() -> None:
    m = Membership()
    beat(m, 0)
    assert steps(m.decide(A, approved=False)) == [("online", "pending")]
    assert beat(m, 1, approved=False) == []
    assert steps(m.decide(A, approved=True)) == [("pending", "registering")]


def test_a_node_is_suspect_after_three_missed_heartbeats_and_offline_after_thirty_seconds() -> None:
    m = Membership()
    beat(m, 0)
    assert not m.suspect(A, 2.9)
    assert m.suspect(A, 3.0)
    assert m.state(A) == "online", "suspect is no state"
    assert m.tick(29.9) == []
    assert steps(m.tick(30)) == [("online", "offline")]
    assert m.tick(31) == []
    assert not m.suspect(A, 40), "offline is not suspect"
    assert steps(beat(m, 50)) == [("offline", "registering"), ("registering", "online")]
    assert not m.suspect(A, 50)


def test_it_is_known_when_a_node_that_falls_silent_is_another_thing() -> None:
    m = Membership()
    assert m.until_next(0) == math.inf, "there is no node"
    beat(m, 0)
    m.heartbeat("b" * 32, 1, approved=True, ready=1, total=1)
    assert m.until_next(1) == 2, "then the first is suspect"
    assert m.until_next(3) == 1, "then the other one is"
    assert m.until_next(4) == 26, "then the first is offline"
    m.tick(30)
    assert m.until_next(30) == 1
    m.tick(31)
    assert m.until_next(31) == math.inf, "both are offline, and stay so until they are heard"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 10)), max_size=20))
def test_nothing_changes_before_the_time_that_is_told(beats: list[tuple[str, float]]) -> None:
    m, now = Membership(), 0.0
    for node, pause in beats:
        now += pause
        m.heartbeat(node * 32, now, approved=True, ready=1, total=1)
    for _ in range(5):
        m.tick(now)
        before = [(m.state(node), m.suspect(node, now)) for node in m.nodes()]
        pause = m.until_next(now)
        if pause == math.inf:
            return
        just_before = now + pause * 0.999
        assert m.tick(just_before) == []
        assert [(m.state(node), m.suspect(node, just_before)) for node in m.nodes()] == before
        now += pause + 1e-6


def test_after_a_time_in_which_nothing_could_be_heard_nodes_are_suspect_and_not_offline() -> None:
    m = Membership()
    beat(m, 0)
    m.deaf(100)
    assert m.tick(100) == []
    assert m.suspect(A, 100)
    beat(m, 101)
    assert not m.suspect(A, 101)
    m.deaf(200)
    assert steps(m.tick(227)) == [("online", "offline")]


def test_a_node_that_nobody_answers_for_is_suspect_until_it_is_heard() -> None:
    m = Membership()
    beat(m, 0)
    m.lost(A)
    assert m.suspect(A, 0.1)
    beat(m, 1)
    assert not m.suspect(A, 1.1)


def test_a_goodbye_is_offline_at_once() -> None:
    m = Membership()
    beat(m, 0)
    assert steps(m.heartbeat(A, 1, approved=True, ready=1, total=1, leaving=True)) == [("online", "offline")]
    assert m.heartbeat("b" * 32, 1, approved=True, ready=1, total=1, leaving=True) == [], "a stranger's goodbye"
    assert m.state("b" * 32) is None


def test_a_node_known_from_its_record_is_offline_until_it_is_heard() -> None:
    m = Membership()
    assert m.decide(A, approved=True) == []
    assert m.state(A) == "offline"
    assert steps(beat(m, 0)) == [("offline", "registering"), ("registering", "online")]


def test_a_removed_node_is_new_when_it_is_heard_again() -> None:
    m = Membership()
    beat(m, 0)
    m.forget(A)
    assert m.state(A) is None
    assert steps(beat(m, 1, approved=False)) == [(None, "pending")]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("beat"), st.integers(0, 2), st.booleans()),
            st.tuples(st.just("tick"), st.floats(0, 40)),
            st.tuples(st.just("decide"), st.booleans()),
            st.tuples(st.just("lost")),
            st.tuples(st.just("deaf")),
            st.tuples(st.just("restarted")),
            st.tuples(st.just("forget")),
        ),
        max_size=30,
    )
)
def test_whatever_happens_only_approved_nodes_work_and_transitions_join_up(events: list[tuple]) -> None:  # type: ignore[type-arg]
    m, now, state, approved = Membership(), 0.0, None, False
    for event in events:
        moved: list[Transition] = []
        if event[0] == "beat":
            moved = m.heartbeat(A, now, approved=approved, ready=event[1], total=2, leaving=event[2])
        elif event[0] == "tick":
            now += event[1]
            moved = m.tick(now)
        elif event[0] == "decide":
            approved = event[1]
            moved = m.decide(A, approved=approved)
            state = state or "offline"
        elif event[0] == "lost":
            m.lost(A)
        elif event[0] == "deaf":
            m.deaf(now)
        elif event[0] == "restarted":
            moved = m.restarted(A)
        else:
            m.forget(A)
            state = None
        for step in moved:
            assert step.before == state, "transitions join up"
            assert step.before != step.after
            state = step.after
        assert m.state(A) == state
        if state in ("online", "registering"):
            assert approved
        if m.suspect(A, now):
            assert state == "online"


# Two processes with one id


def test_a_node_that_starts_again_is_believed_at_once() -> None:
    it = Instances()
    assert it.heard(A, "old", 0)
    assert it.heard(A, "new", 0.5)
    assert it.heard(A, "new", 1.5)
    assert not it.doubled(A, 1.5)


def test_of_two_that_are_both_heard_the_first_one_is_the_node() -> None:
    it = Instances()
    it.heard(A, "first", 0)
    assert it.heard(A, "second", 0.5), "it might be the first one, started again"
    assert it.heard(A, "first", 1.0), "it is not"
    assert not it.heard(A, "second", 1.5)
    assert it.heard(A, "first", 2.0)
    assert it.doubled(A, 2.0)
    assert not it.doubled(A, 5.0), "the second one is gone"


def test_the_second_one_takes_over_when_the_first_one_is_gone() -> None:
    it = Instances()
    for now, who in ((0, "first"), (0.5, "second"), (1, "first"), (1.5, "second"), (2.5, "second"), (3.5, "second")):
        it.heard(A, who, now)
    assert it.heard(A, "second", 4.5)
    assert not it.doubled(A, 4.5)


def test_one_that_comes_back_after_a_hang_finds_its_place_taken() -> None:
    it = Instances()
    it.heard(A, "hung", 0)
    assert it.heard(A, "new", 5)
    assert not it.heard(A, "hung", 6)
    assert it.doubled(A, 6)
    assert it.heard(A, "new", 6)
    it.left(A, "hung")
    assert not it.doubled(A, 6)


def test_one_that_was_replaced_long_ago_and_comes_back_is_the_second_one() -> None:
    it = Instances()
    it.heard(A, "old", 0)
    it.heard(A, "new", 0.5)
    for now in range(1, 100):
        it.heard(A, "new", now)
    it.heard(A, "old", 100)
    assert it.heard(A, "new", 100.5)
    assert not it.heard(A, "old", 101)
    assert it.heard(A, "new", 101.5)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12), st.permutations(["a", "b"]))
def test_of_two_that_go_on_beating_exactly_one_is_believed_in_the_end(before: list[str], order: list[str]) -> None:
    it, now = Instances(), 0.0
    for who in before:
        it.heard(A, who, now)
        now += 0.4
    now += 3
    for _ in range(3):
        for who in order:
            it.heard(A, who, now)
            now += 0.5
    believed = {who for who in order if it.heard(A, who, now)}
    assert len(believed) == 1
    assert it.doubled(A, now)


# Join tokens


def test_a_proof_is_good_for_one_node_and_one_token() -> None:
    token, other = new_token(), new_token()
    proof = proof_of(digest_of(token), A)
    assert proves(proof, digest_of(token), A)
    assert not proves(proof, digest_of(token), "b" * 32)
    assert not proves(proof, digest_of(other), A)
    assert not proves("ü", digest_of(token), A)
    assert token not in proof
    assert len(token_id_of(digest_of(token))) == 12
