from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.router.breaker import (
    FAST_S,
    HALF_LIFE_S,
    OPEN_MAX_S,
    OPEN_S,
    PENALTY_MAX_S,
    PENALTY_S,
    PROBE_MAX_S,
    Breakers,
)

N, M = "node", "model"


def opened(at: float = 100.0, after_s: float = 10.0) -> Breakers:
    breakers = Breakers()
    breakers.failed(N, M, at, after_s)
    return breakers


def probe(breakers: Breakers, now: float) -> None:
    assert breakers.allows(N, M, now)
    breakers.probing(N, M)


def test_what_never_failed_is_closed() -> None:
    breakers = Breakers()
    assert breakers.allows(N, M, 0.0)
    assert breakers.state(N, M, 0.0) == "closed"
    assert breakers.penalty_s(N, M, 0.0) == 0.0
    breakers.succeeded(N, M, 0.0)
    breakers.abandoned(N, M)
    breakers.probing(N, M)
    assert breakers.states() == {}


def test_one_failure_opens_it_for_a_second_and_then_one_probe_is_let_through() -> None:
    breakers = opened(100.0)
    assert not breakers.allows(N, M, 100.99)
    assert breakers.state(N, M, 100.99) == "open"
    assert breakers.state(N, M, 101.0) == "half-open"
    probe(breakers, 101.0)
    assert not breakers.allows(N, M, 101.0)
    assert breakers.state(N, M, 101.0) == "half-open"


def test_a_successful_probe_closes_it() -> None:
    breakers = opened(100.0)
    probe(breakers, 101.0)
    breakers.succeeded(N, M, 102.0)
    assert breakers.state(N, M, 102.0) == "closed"
    assert breakers.allows(N, M, 102.0)


def test_each_failed_probe_opens_it_twice_as_long_up_to_a_minute_and_a_success_resets_that() -> None:
    breakers = opened(0.0)
    now = 0.0
    for length in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert not breakers.allows(N, M, now + length - 0.01)
        now += length
        probe(breakers, now)
        breakers.failed(N, M, now + 0.001, 0.001)
        now += 0.001
    now += OPEN_MAX_S
    probe(breakers, now)
    breakers.succeeded(N, M, now + 1.0)
    breakers.failed(N, M, now + 10.0, 1.0)
    assert breakers.allows(N, M, now + 10.0 + OPEN_S)


def test_requests_that_were_under_way_when_it_opened_are_one_failure() -> None:
    breakers = opened(100.0)
    for _ in range(15):
        breakers.failed(N, M, 100.2, 30.0)
    assert breakers.state(N, M, 101.0) == "half-open"
    probe(breakers, 101.0)
    breakers.failed(N, M, 101.5, 20.0)
    assert not breakers.allows(N, M, 101.5), "the probe is still under way"
    breakers.succeeded(N, M, 101.6)
    breakers.failed(N, M, 101.7, 20.0)
    assert breakers.state(N, M, 101.7) == "closed"


def test_a_success_while_it_is_open_was_sent_before_and_proves_nothing() -> None:
    breakers = opened(100.0)
    breakers.succeeded(N, M, 100.5)
    assert breakers.state(N, M, 100.5) == "open"


def test_an_abandoned_probe_leaves_the_next_request_to_be_one() -> None:
    breakers = opened(100.0)
    probe(breakers, 101.0)
    breakers.abandoned(N, M)
    assert breakers.state(N, M, 101.5) == "half-open"
    probe(breakers, 101.5)


def test_another_request_than_the_probe_may_be_abandoned() -> None:
    breakers = opened(100.0)
    probe(breakers, 101.0)
    breakers.abandoned(N, M, began=90.0)
    assert not breakers.allows(N, M, 101.5)
    breakers.abandoned(N, M, began=101.0)
    assert breakers.allows(N, M, 101.5)


def test_a_probe_that_nobody_reports_on_does_not_shut_the_node_out_for_ever() -> None:
    breakers = opened(100.0)
    probe(breakers, 101.0)
    assert not breakers.allows(N, M, 101.0 + PROBE_MAX_S - 1.0)
    assert breakers.allows(N, M, 101.0 + PROBE_MAX_S)


def test_breakers_of_other_models_and_nodes_stay_closed() -> None:
    breakers = opened()
    assert breakers.allows(N, "other", 100.0)
    assert breakers.allows("other", M, 100.0)
    assert breakers.states() == {(N, M): "open"}
    assert breakers.states(200.0) == {(N, M): "half-open"}


def test_a_fast_failure_counts_as_load_and_fades() -> None:
    breakers = opened(100.0, after_s=0.0)
    assert breakers.penalty_s(N, M, 100.0) == pytest.approx(PENALTY_S)
    assert breakers.penalty_s(N, M, 100.0 + HALF_LIFE_S) == pytest.approx(PENALTY_S / 2)
    assert breakers.penalty_s(N, M, 100.0 + 3 * HALF_LIFE_S) == pytest.approx(PENALTY_S / 8)
    breakers.failed(N, M, 100.0 + HALF_LIFE_S, FAST_S / 2)
    assert breakers.penalty_s(N, M, 100.0 + HALF_LIFE_S) == pytest.approx(PENALTY_S)


def test_a_slow_failure_costs_its_time_anyway() -> None:
    assert opened(100.0, after_s=FAST_S).penalty_s(N, M, 100.0) == 0.0


def test_a_success_does_not_wipe_out_the_penalty_of_a_node_that_fails_every_other_time() -> None:
    breakers = Breakers()
    now = 0.0
    for _ in range(10):
        breakers.failed(N, M, now, 0.01)
        now += OPEN_S
        probe(breakers, now)
        breakers.succeeded(N, M, now + 0.1)
        now += 0.2
    assert breakers.penalty_s(N, M, now) > 3 * PENALTY_S
    for _ in range(1000):
        breakers.failed(N, M, now, 0.0)
    assert breakers.penalty_s(N, M, now) == PENALTY_MAX_S


def test_a_node_that_left_is_forgotten() -> None:
    breakers = opened()
    breakers.forget(N)
    breakers.forget(N)
    assert breakers.allows(N, M, 100.0)
    assert breakers.penalty_s(N, M, 100.0) == 0.0


def test_what_works_again_leaves_nothing_behind() -> None:
    breakers = Breakers()
    for number in range(50):
        breakers.failed(f"node{number}", M, 0.0, 0.0)
        breakers.succeeded(f"node{number}", M, 2.0)
    breakers.failed(N, M, 900.0, 5.0)
    breakers.succeeded(N, M, 902.0)
    assert breakers.states() == {(N, M): "closed"}
    breakers.succeeded(N, M, 1000.0)
    assert breakers.states() == {}


steps = st.lists(
    st.tuples(st.sampled_from(["fail", "succeed", "send", "abandon"]), st.floats(0.0, 40.0), st.floats(0.0, 5.0)),
    max_size=40,
)


@given(steps)
def test_at_most_one_probe_is_under_way_and_open_times_stay_in_their_bounds(
    steps: list[tuple[str, float, float]],
) -> None:
    breakers = Breakers()
    now, probing = 0.0, False
    for step, passed, after_s in steps:
        now += passed
        state = breakers.state(N, M, now)
        assert breakers.allows(N, M, now) or state != "closed"
        if step == "send" and breakers.allows(N, M, now):
            assert not (probing and state == "half-open")
            breakers.probing(N, M)
            probing = state == "half-open"
            probe_at = now
            if probing:
                assert not breakers.allows(N, M, now)
        elif step == "fail":
            breakers.failed(N, M, now, after_s)
            probing = probing and breakers.state(N, M, now) == "half-open"
        elif step == "succeed":
            breakers.succeeded(N, M, now)
            probing = probing and breakers.state(N, M, now) == "half-open"
        elif step == "abandon":
            breakers.abandoned(N, M)
            probing = False
        if probing and now - probe_at >= PROBE_MAX_S - 50.0:
            breakers.abandoned(N, M)
            probing = False
        assert 0.0 <= breakers.penalty_s(N, M, now) <= PENALTY_MAX_S
        assert breakers.state(N, M, now + OPEN_MAX_S) != "open"
