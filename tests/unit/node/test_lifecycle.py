from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmlb.node.lifecycle import Effect, Lifecycle, Load, Unload

MODELS = ["a", "b"]


def test_one_load_is_shared_by_all_who_want_it() -> None:
    life = Lifecycle(300)
    assert life.want("a", 0) == [Load("a")]
    assert life.want("a", 1) == []
    life.loaded("a", 2)
    assert life.state("a") == "ready"
    assert life.want("a", 3) == []


def test_an_idle_model_is_unloaded_exactly_after_its_keep_alive() -> None:
    life = Lifecycle(10)
    life.want("a", 0)
    life.loaded("a", 1)
    life.started("a", 2)
    assert life.tick(100) == [], "a busy model stays"
    assert life.expires_in_s("a", 100) == 10
    life.finished("a", 100)
    assert life.expires_in_s("a", 104) == 6
    assert life.tick(109.9) == []
    assert life.tick(110) == [Unload("a")]
    assert life.tick(111) == [], "said once"
    life.unloaded("a", 112)
    assert life.want("a", 113) == [Load("a")]


@pytest.mark.parametrize(("keep_alive", "unloaded"), [(-1, []), (0, [Unload("a")])])
def test_keep_alive_of_minus_one_is_for_ever_and_zero_is_at_once(keep_alive: float, unloaded: list[Effect]) -> None:
    life = Lifecycle(keep_alive)
    life.want("a", 0)
    life.loaded("a", 0)
    life.started("a", 0)
    life.finished("a", 5)
    assert life.tick(5) == unloaded


def test_stop_waits_for_the_last_answer() -> None:
    life = Lifecycle(300)
    life.want("a", 0)
    life.loaded("a", 0)
    life.started("a", 0)
    assert life.stop("a", 1) == []
    assert life.state("a") == "stopping"
    assert life.finished("a", 2) == [Unload("a")]


def test_stop_while_it_loads_unloads_it_when_it_is_there() -> None:
    life = Lifecycle(300)
    life.want("a", 0)
    assert life.stop("a", 1) == []
    assert life.loaded("a", 2) == [Unload("a")]


def test_a_failed_load_and_a_crash_can_be_tried_again() -> None:
    life = Lifecycle(300)
    life.want("a", 0)
    life.load_failed("a", 1)
    assert life.want("a", 2) == [Load("a")]
    life.loaded("a", 3)
    life.started("a", 3)
    life.crashed("a", 4, "why")
    assert life.state("a") == "absent"
    assert life.finished("a", 5) == []
    assert life.want("a", 6) == [Load("a")]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: no busy model is unloaded, and nothing is loaded twice at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.life = Lifecycle(5)
        self.loading: Counter[str] = Counter()
        self.unloading: Counter[str] = Counter()
        self.running: Counter[str] = Counter()

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Load):
                self.loading[effect.model] += 1
            else:
                assert self.running[effect.model] == 0, "a busy model was unloaded"
                self.unloading[effect.model] += 1

    @rule(model=st.sampled_from(MODELS))
    def want(self, model: str) -> None:
        self.take(self.life.want(model, self.now))

    @rule(model=st.sampled_from(MODELS), well=st.booleans())
    def load_ends(self, model: str, well: bool) -> None:
        if self.loading[model]:
            self.loading[model] -= 1
            if well:
                self.take(self.life.loaded(model, self.now))
            else:
                self.life.load_failed(model, self.now)

    @rule(model=st.sampled_from(MODELS))
    def start(self, model: str) -> None:
        if self.life.state(model) == "ready":
            self.running[model] += 1
            self.life.started(model, self.now)

    @rule(model=st.sampled_from(MODELS))
    def finish(self, model: str) -> None:
        if self.running[model]:
            self.running[model] -= 1
            self.take(self.life.finished(model, self.now))

    @rule(model=st.sampled_from(MODELS))
    def stop(self, model: str) -> None:
        self.take(self.life.stop(model, self.now))

    @rule(model=st.sampled_from(MODELS))
    def unload_ends(self, model: str) -> None:
        if self.unloading[model]:
            self.unloading[model] -= 1
            self.life.unloaded(model, self.now)

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.life.tick(self.now))

    @invariant()
    def nothing_twice(self) -> None:
        assert all(count <= 1 for count in (*self.loading.values(), *self.unloading.values()))


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
