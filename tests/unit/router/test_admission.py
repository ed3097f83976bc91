from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from llmlb.bus.errors import QueueFull
from llmlb.router.admission import RETRY_AFTER_S, Queue

LATE = 1e9


def filled(*keys: str, most: int = 1000, model: str = "m", displace: bool = False) -> Queue:
    """A queue with one ticket, 0, 1, 2 …, for each key named."""
    queue = Queue(most, displace=displace)
    for number, key in enumerate(keys):
        queue.join(number, model, key, 0.0, LATE)
    return queue


def served(queue: Queue, model: str = "m") -> list[int]:
    """Everybody, in the order of service."""
    out = []
    while (ticket := queue.next(model)) is not None:
        queue.admit(ticket, 0.0)
        out.append(ticket)
    return out


def paced(gap_s: float, waiting: int) -> Queue:
    """A queue that let somebody in each ``gap_s`` seconds, up to now = 10 gaps, with so many waiting still."""
    queue = filled(*["k"] * (10 + waiting))
    for turn in range(1, 11):
        ticket = queue.next("m")
        assert ticket is not None
        queue.admit(ticket, turn * gap_s)
    return queue


# Order


def test_one_key_is_served_in_the_order_of_coming() -> None:
    assert served(filled("a", "a", "a")) == [0, 1, 2]


def test_keys_take_turns() -> None:
    assert served(filled("a", "a", "a", "b", "b", "c")) == [0, 3, 5, 1, 4, 2]


def test_a_key_with_100_waiting_delays_the_first_of_another_key_by_one_at_most() -> None:
    queue = filled(*["greedy"] * 100)
    assert queue.join(100, "m", "modest", 0.0, LATE) == 1
    assert served(queue)[:3] == [0, 100, 1]


def test_a_key_that_comes_back_at_once_gets_every_other_turn_and_not_more() -> None:
    queue = filled(*["greedy"] * 10)
    turns = []
    number = 100
    queue.join(number, "m", "back", 0.0, LATE)
    for _ in range(8):
        ticket = queue.next("m")
        assert ticket is not None
        queue.admit(ticket, 0.0)
        turns.append("back" if ticket >= 100 else "greedy")
        if ticket >= 100:
            number += 1
            queue.join(number, "m", "back", 0.0, LATE)
    assert turns == ["greedy", "back"] * 4


def test_ever_new_keys_do_not_starve_one_that_waits() -> None:
    queue = filled("old", "old")
    for number in range(2, 50):
        queue.join(number, "m", f"new{number}", 0.0, LATE)
        ticket = queue.next("m")
        assert ticket is not None
        queue.admit(ticket, 0.0)
        if ticket == 1:
            break
    assert ticket == 1
    assert number <= 5


def test_each_model_has_a_line_of_its_own() -> None:
    queue = filled("a", "a")
    assert queue.join(9, "other", "a", 0.0, LATE) == 0
    assert queue.next("other") == 9
    assert queue.next("m") == 0
    assert queue.next("nobody waits for it") is None
    assert (queue.waiting("m"), queue.waiting("other"), queue.waiting()) == (2, 1, 3)
    assert queue.models() == {"m": 2, "other": 1}


def test_looking_whose_turn_it_is_changes_nothing() -> None:
    queue = filled("a", "b")
    assert [queue.next("m") for _ in range(3)] == [0, 0, 0]


def test_who_is_let_in_out_of_turn_has_had_its_keys_turn() -> None:
    queue = filled("a", "b", "c", "b")
    queue.admit(1, 0.0)
    assert served(queue) == [0, 2, 3]


def test_who_leaves_is_not_served_and_delays_nobody() -> None:
    queue = filled("a", "a", "b")
    assert queue.leave(0)
    assert not queue.leave(0)
    assert not queue.leave(77)
    assert served(queue) == [1, 2]


def test_a_ticket_waits_once() -> None:
    queue = filled("a")
    with pytest.raises(ValueError, match="waits already"):
        queue.join(0, "m", "a", 0.0, LATE)
    with pytest.raises(KeyError):
        queue.admit(5, 0.0)
    with pytest.raises(KeyError):
        queue.position(5)


# Bounds


def test_a_full_queue_refuses_and_says_how_many_places_it_has() -> None:
    queue = filled("a", "a", most=2)
    with pytest.raises(QueueFull, match="2 waiting places"):
        queue.join(2, "other model", "b", 0.0, LATE)
    assert queue.waiting() == 2
    queue.leave(0)
    queue.join(2, "other model", "b", 0.0, LATE)


def test_a_queue_without_places_refuses_everybody() -> None:
    with pytest.raises(QueueFull):
        filled("a", most=0)


def test_with_displacement_a_key_that_fills_the_queue_makes_place_for_others_until_shares_are_even() -> None:
    queue = filled(*["greedy"] * 4, most=4, displace=True)
    queue.join(10, "other", "modest", 0.0, LATE)
    assert queue.displaced() == [3]
    assert queue.displaced() == []
    queue.join(11, "m", "modest", 0.0, LATE)
    assert queue.displaced() == [2]
    for key in ("modest", "greedy"):
        with pytest.raises(QueueFull):
            queue.join(12, "m", key, 0.0, LATE)
    assert served(queue) == [0, 11, 1]
    assert served(queue, "other") == [10]


def test_those_whose_time_is_over_are_named_once_and_wait_no_more() -> None:
    queue = Queue(10)
    for number, deadline in enumerate([5.0, 3.0, 9.0, 3.0]):
        queue.join(number, "m", "k", 0.0, deadline)
    queue.leave(3)
    assert queue.expired(2.9) == []
    assert queue.expired(5.0) == [1, 0]
    assert queue.expired(5.0) == []
    assert queue.waiting() == 1


def test_those_who_left_long_before_their_time_leave_nothing_behind() -> None:
    queue = Queue(10)
    for number in range(5000):
        queue.join(number, "m", f"key {number}", 0.0, LATE)
        queue.leave(number)
    assert len(queue._deadlines) < 200
    assert not queue._lines
    assert not queue._counts
    assert not queue._by_key


def test_ten_thousand_wait_and_are_all_served() -> None:
    queue = filled(*(f"key {number % 37}" for number in range(10_000)), most=10_000)
    assert sorted(served(queue)) == list(range(10_000))


# What can be told


def test_the_position_is_the_true_one() -> None:
    queue = filled("a", "a", "b", "a", "c", "b")
    places = {ticket: queue.position(ticket) for ticket in range(6)}
    order = served(queue)
    assert [order.index(ticket) for ticket in range(6)] == [places[ticket] for ticket in range(6)]


def test_the_wait_is_estimated_by_how_the_line_moved() -> None:
    queue = paced(2.0, waiting=6)
    assert [queue.wait_estimate_s(10 + place, 20.0) for place in range(3)] == [2.0, 4.0, 6.0]
    assert queue.wait_estimate_s(12, 21.0) == 5.0


def test_the_estimate_grows_while_the_line_stands_still() -> None:
    queue = paced(2.0, waiting=6)
    assert queue.wait_estimate_s(12, 50.0) == 60.0


def test_no_estimate_is_made_up() -> None:
    queue = filled("a", "b")
    assert queue.wait_estimate_s(1, 5.0) is None
    assert queue.retry_after_s() == RETRY_AFTER_S


def test_the_time_a_line_was_empty_is_not_counted_as_waiting() -> None:
    queue = paced(2.0, waiting=0)
    queue.join(100, "m", "k", 1000.0, LATE)
    queue.join(101, "m", "k", 1000.0, LATE)
    assert queue.wait_estimate_s(100, 1000.0) == 2.0
    queue.admit(100, 1001.0)
    assert queue.wait_estimate_s(101, 1001.0) == 2.0


@pytest.mark.parametrize(("gap_s", "waiting", "expected"), [(2.0, 20, 20), (0.01, 3, 1), (30.0, 50, 60)])
def test_a_refused_request_is_told_to_come_back_when_half_the_line_is_through(
    gap_s: float, waiting: int, expected: int
) -> None:
    assert paced(gap_s, waiting).retry_after_s() == expected


def test_the_longest_wait_is_that_of_the_oldest() -> None:
    queue = Queue(10)
    assert queue.longest_wait_s(5.0) == 0.0
    for number in range(3):
        queue.join(number, f"model {number}", "k", float(number), LATE)
    assert queue.longest_wait_s(10.0) == 10.0
    queue.leave(0)
    assert queue.longest_wait_s(10.0) == 9.0


# For all histories


@given(st.lists(st.sampled_from("abcd"), max_size=40))
def test_every_position_is_kept_if_nobody_comes_or_leaves(keys: list[str]) -> None:
    queue = filled(*keys)
    places = [queue.position(ticket) for ticket in range(len(keys))]
    order = served(queue)
    assert sorted(order) == list(range(len(keys)))
    assert [order[place] for place in places] == list(range(len(keys)))


class Waiting(RuleBasedStateMachine):
    """Against the plainest list of who waits."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(12)
        self.now = 0.0
        self.number = 0
        self.here: dict[int, tuple[str, str, float]] = {}
        self.gone: set[int] = set()
        self.before: dict[int, dict[str, int]] = {}
        """How often each other key was served since a ticket is the first of its key."""

    @rule(target=tickets, model=st.sampled_from("xy"), key=st.sampled_from("abc"), time=st.floats(0.1, 20.0))
    def join(self, model: str, key: str, time: float) -> int:
        self.number += 1
        if len(self.here) >= 12:
            with pytest.raises(QueueFull):
                self.queue.join(self.number, model, key, self.now, self.now + time)
            return self.number
        place = self.queue.join(self.number, model, key, self.now, self.now + time)
        assert 0 <= place < len([one for one in self.here.values() if one[0] == model]) + 1
        self.here[self.number] = (model, key, self.now + time)
        return self.number

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: int) -> None:
        assert self.queue.leave(ticket) == (ticket in self.here)
        self.lose(ticket)

    @rule(model=st.sampled_from("xy"), passed=st.floats(0.0, 2.0))
    def serve(self, model: str, passed: float) -> None:
        self.now += passed
        ticket = self.queue.next(model)
        assert (ticket is None) == (not any(one[0] == model for one in self.here.values()))
        if ticket is None:
            return
        key = self.here[ticket][1]
        same = [number for number, one in self.here.items() if one[:2] == (model, key)]
        assert ticket == min(same), "the oldest of its key goes first"
        for number, one in self.here.items():
            if one[0] == model and one[1] != key and number == self.first(model, one[1]):
                counts = self.before.setdefault(number, {})
                counts[key] = counts.get(key, 0) + 1
                assert counts[key] <= 1, "no key is served twice before the first of another one"
        self.queue.admit(ticket, self.now)
        self.lose(ticket)

    @rule(passed=st.floats(0.0, 10.0))
    def expire(self, passed: float) -> None:
        self.now += passed
        expected = {number for number, one in self.here.items() if one[2] <= self.now}
        out = self.queue.expired(self.now)
        assert set(out) == expected
        assert len(out) == len(expected)
        for number in out:
            self.lose(number)

    @precondition(lambda self: self.here)
    @rule()
    def ask(self) -> None:
        for number in self.here:
            estimate = self.queue.wait_estimate_s(number, self.now)
            assert estimate is None or estimate >= 0.0

    def first(self, model: str, key: str) -> int:
        return min(number for number, one in self.here.items() if one[:2] == (model, key))

    def lose(self, ticket: int) -> None:
        self.here.pop(ticket, None)
        self.before.pop(ticket, None)

    @invariant()
    def nobody_is_lost(self) -> None:
        assert self.queue.waiting() == len(self.here) <= 12
        for model in "xy":
            line = [number for number, one in self.here.items() if one[0] == model]
            assert self.queue.waiting(model) == len(line)
            assert sorted(self.queue.position(number) for number in line) == list(range(len(line)))
            assert (head := self.queue.next(model)) is None or self.queue.position(head) == 0


Waiting.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWaiting = Waiting.TestCase
