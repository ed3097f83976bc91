"""What large bodies may take together."""

from __future__ import annotations

import pytest

from llmlb.bus.errors import CapacityError
from llmlb.bus.settings import Settings
from llmlb.router.gateway.body_budget import LEAST_BYTES, MOST_BYTES, BodyBudget, Held, budget_of

MIB = 1024 * 1024


def test_small_bodies_are_not_counted() -> None:
    budget = BodyBudget(4 * MIB)
    for _ in range(1000):
        Held(budget).grow(LEAST_BYTES)
    assert budget.taken == 0


def test_what_grows_is_counted_once_and_given_back_once() -> None:
    budget = BodyBudget(4 * MIB)
    held = Held(budget)
    for size in (MIB, 2 * MIB, 3 * MIB, 3 * MIB):
        held.grow(size)
    assert budget.taken == 3 * MIB
    held.release()
    held.release()
    assert budget.taken == 0


def test_what_does_not_fit_takes_nothing_and_keeps_what_it_had() -> None:
    budget = BodyBudget(4 * MIB)
    one, two = Held(budget), Held(budget)
    one.grow(2 * MIB)
    two.grow(2 * MIB)
    with pytest.raises(CapacityError):
        two.grow(2 * MIB + 1)
    assert budget.taken == 4 * MIB
    one.release()
    two.grow(3 * MIB)
    two.release()
    assert budget.taken == 0


def test_one_body_of_the_largest_size_always_fits() -> None:
    settings = Settings(max_body_bytes=50 * MIB, body_budget_bytes=MIB)
    assert budget_of(settings).total == 50 * MIB


def test_processes_share_what_was_set_and_the_default_is_bounded() -> None:
    assert budget_of(Settings(body_budget_bytes=800 * MIB), processes=4).total == 200 * MIB
    assert 20_000_000 <= budget_of(Settings()).total <= MOST_BYTES
