"""How many connections a download has: more where they wait, fewer where they don't."""

from __future__ import annotations

import pytest

from llmlb.node.pull.pace import LOOK_S, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _passes(pace: Pace, clock: Clock, numbers: range, waiting: float, looks: int = 1) -> list[int]:
    """Connections that wait for that share of their time; what is wanted after each look."""
    wanted = []
    for _ in range(looks):
        for number in numbers:
            pace.waits(number)
        clock.now += LOOK_S * waiting
        for number in numbers:
            pace.goes_on(number)
        clock.now += LOOK_S * (1 - waiting) + 1e-9
        wanted.append(pace.wanted())
    return wanted


def _begun(pace: Pace, numbers: range) -> None:
    for number in numbers:
        pace.begins(number)
        pace.goes_on(number)


def test_a_download_begins_with_one_connection_and_stays_so_while_that_is_busy(clock: Clock) -> None:
    pace = Pace(4, clock)
    assert pace.wanted() == 1
    _begun(pace, range(1))
    assert _passes(pace, clock, range(1), 0.3, looks=5) == [1] * 5


def test_where_connections_wait_another_one_joins_at_each_look_up_to_the_most(clock: Clock) -> None:
    pace = Pace(4, clock)
    _begun(pace, range(1))
    assert _passes(pace, clock, range(1), 0.9, looks=5) == [2, 3, 4, 4, 4]


def test_those_that_no_longer_wait_become_fewer_one_after_the_other(clock: Clock) -> None:
    pace = Pace(3, clock)
    _begun(pace, range(3))
    assert _passes(pace, clock, range(3), 0.9, looks=2) == [2, 3]
    assert _passes(pace, clock, range(3), 0.3) == [3], "neither much nor little"
    assert _passes(pace, clock, range(3), 0.1, looks=3) == [2, 1, 1]


def test_one_that_falls_silent_counts_while_it_waits(clock: Clock) -> None:
    pace = Pace(4, clock)
    _begun(pace, range(1))
    pace.waits(0)
    for wanted in (2, 3, 4):
        clock.now += LOOK_S + 1e-9
        assert pace.wanted() == wanted
    pace.goes_on(0)
    clock.now += LOOK_S + 1e-9
    assert pace.wanted() == 3, "what was counted in an earlier look is not counted again"


def test_the_way_of_a_request_to_its_answer_is_waiting_too(clock: Clock) -> None:
    pace = Pace(2, clock)
    pace.begins(0)
    clock.now += LOOK_S + 1e-9
    pace.ends(0)
    assert pace.wanted() == 2


def test_where_nobody_asks_for_anything_nothing_changes(clock: Clock) -> None:
    pace = Pace(4, clock)
    _begun(pace, range(1))
    assert _passes(pace, clock, range(1), 1.0, looks=2) == [2, 3]
    pace.ends(0)
    pace.wanted()
    clock.now += 60.0
    assert pace.wanted() == 3
