from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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
    assert steps(m.approve(A)) == [("pending", "registering")]
    assert m.approve(A) == []
    assert beat(m, 2, approved=False, ready=0, total=2) == []
    assert m.state(A) == "registering"
    assert steps(beat(m, 3, approved=False, ready=2, total=2)) == [("registering", "online")]


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


def test_a_remembered_node_keeps_its_approval() -> None:
    m = Membership()
    m.remember(A, approved=True)
    assert m.state(A) == "offline"
    assert steps(beat(m, 0, approved=False)) == [("offline", "registering"), ("registering", "online")]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("beat"), st.booleans(), st.integers(0, 2), st.booleans()),
            st.tuples(st.just("tick"), st.floats(0, 40)),
            st.tuples(st.just("approve")),
            st.tuples(st.just("lost")),
        ),
        max_size=30,
    )
)
def test_whatever_happens_only_approved_and_ready_nodes_are_online(events: list[tuple]) -> None:  # type: ignore[type-arg]
    m, now, state, approved = Membership(), 0.0, None, False
    for event in events:
        if event[0] == "beat":
            approved = approved or event[1]
            moved = m.heartbeat(A, now, approved=event[1], ready=event[2], total=2, leaving=event[3])
        elif event[0] == "tick":
            now += event[1]
            moved = m.tick(now)
        elif event[0] == "approve":
            approved = approved or state is not None
            moved = m.approve(A)
        else:
            m.lost(A)
            moved = []
        for step in moved:
            assert step.before == state, "transitions join up"
            assert step.before != step.after
            state = step.after
        assert m.state(A) == state
        if state == "online":
            assert approved
