from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmlb.node.lifecycle import BACKOFF_S, CRASHES_MAX, FAILED_FOR_S, Effect, Lifecycle, Load, Unload

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


def test_a_failed_load_can_be_tried_again() -> None:
    life = Lifecycle(300)
    life.want("a", 0)
    life.load_failed("a", 1)
    assert life.state("a") == "absent"
    assert life.want("a", 2) == [Load("a")]


def test_a_crash_is_followed_by_restarts_after_pauses_that_double() -> None:
    life = Lifecycle(300)
    life.want("a", 0)
    life.loaded("a", 1)
    life.started("a", 1)
    assert life.crashed("a", 2, "why") == [Load("a", BACKOFF_S)]
    assert life.state("a") == "loading"
    assert life.running("a") == 0, "what ran there is over"
    assert life.want("a", 2) == [], "it is on its way"
    life.loaded("a", 3)
    assert life.crashed("a", 4, "why") == [Load("a", 2 * BACKOFF_S)]


def crash(life: Lifecycle, times: int, now: float = 0) -> None:
    """Crashes in a row; the last one's effects are none."""
    for number in range(times):
        life.want("a", now)
        life.loaded("a", now)
        effects = life.crashed("a", now, f"crash {number}")
    assert effects == []


def test_three_crashes_in_a_row_make_a_model_failed() -> None:
    life = Lifecycle(300)
    crash(life, CRASHES_MAX)
    assert life.state("a") == "failed"
    assert life.failed() == {"a": "crash 2"}
    assert life.want("a", FAILED_FOR_S - 1) == []
    assert life.state("b") == "absent"


def test_an_answer_between_crashes_makes_them_no_row() -> None:
    life = Lifecycle(300)
    for now in range(3 * CRASHES_MAX):
        life.want("a", now)
        life.loaded("a", now)
        assert life.crashed("a", now, "why") == [Load("a", BACKOFF_S)]
        life.loaded("a", now)
        life.answered("a")
    assert life.failed() == {}


def test_a_failed_model_is_tried_once_more_after_a_while_or_when_forgiven() -> None:
    life = Lifecycle(300)
    crash(life, CRASHES_MAX)
    assert life.want("a", FAILED_FOR_S) == [Load("a")]
    assert life.failed() == {}
    life.loaded("a", FAILED_FOR_S)
    assert life.crashed("a", FAILED_FOR_S, "again") == []
    assert life.failed() == {"a": "again"}
    assert life.forgive("a")
    assert not life.forgive("a")
    assert life.want("a", FAILED_FOR_S) == [Load("a")]


def test_a_worker_that_dies_while_it_loads_is_tried_again_when_somebody_asks() -> None:
    life = Lifecycle(300)
    for number in range(CRASHES_MAX):
        assert life.want("a", 0) == [Load("a")]
        life.load_crashed("a", 0, f"crash {number}")
    assert life.state("a") == "failed"
    assert life.want("a", 1) == []


@pytest.mark.parametrize("by", ["stop", "keep_alive"])
def test_a_crash_while_it_is_unloaded_brings_no_restart(by: str) -> None:
    life = Lifecycle(10)
    life.want("a", 0)
    life.loaded("a", 0)
    assert (life.stop("a", 1) if by == "stop" else life.tick(100)) == [Unload("a")]
    assert life.crashed("a", 101, "why") == []
    assert life.state("a") == "absent"


def test_a_late_unloaded_says_nothing_about_the_load_that_came_since() -> None:
    life = Lifecycle(300)
    life.want("a", 0)
    life.loaded("a", 0)
    assert life.stop("a", 1) == [Unload("a")]
    life.crashed("a", 2, "died before it was told to go")
    assert life.want("a", 3) == [Load("a")]
    life.unloaded("a", 4)
    assert life.state("a") == "loading"
    life.loaded("a", 5)
    life.load_failed("a", 6)
    assert life.state("a") == "ready"


def test_when_memory_is_short_the_model_that_was_idle_for_longest_goes_and_never_a_busy_one() -> None:
    life = Lifecycle(-1)
    for now, model in enumerate("abc"):
        life.want(model, now)
        life.loaded(model, now)
    life.started("a", 5)
    assert life.evict(6) == [Unload("b")]
    assert life.evict(7) == [Unload("c")]
    assert life.evict(8) == []
    life.want("d", 8)
    assert life.evict(9) == [], "nor one that is being loaded"
    life.finished("a", 10)
    assert life.evict(11) == [Unload("a")]
    life.unloaded("a", 12)
    assert life.want("a", 13) == [Load("a")]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: no busy model is unloaded, nothing is there twice at a time, and a failed
    model stays away until it may be tried again."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.life = Lifecycle(5)
        self.loading: Counter[str] = Counter()
        self.unloading: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.workers: Counter[str] = Counter()
        self.crashes: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        """Workers that crashed while they were unloaded, whose end was not told yet."""

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Load):
                assert not self.workers[effect.model], "loaded while it is there"
                assert 0 <= effect.after_s <= BACKOFF_S * 2 ** (CRASHES_MAX - 2)
                self.loading[effect.model] += 1
            else:
                assert self.running[effect.model] == 0, "a busy model was unloaded"
                assert self.workers[effect.model] == 1, "unloaded what is not there"
                self.unloading[effect.model] += 1

    @rule(model=st.sampled_from(MODELS))
    def want(self, model: str) -> None:
        failed = self.life.state(model) == "failed"
        effects = self.life.want(model, self.now)
        if failed and effects:
            self.crashes[model] = CRASHES_MAX - 1
        self.take(effects)

    @rule(model=st.sampled_from(MODELS), how=st.sampled_from(["well", "well", "badly", "crash"]))
    def load_ends(self, model: str, how: str) -> None:
        if not self.loading[model]:
            return
        self.loading[model] -= 1
        if how == "well":
            self.workers[model] += 1
            self.take(self.life.loaded(model, self.now))
        elif how == "badly":
            self.life.load_failed(model, self.now)
        else:
            self.crashes[model] += 1
            self.life.load_crashed(model, self.now, "while loading")

    @rule(model=st.sampled_from(MODELS))
    def crash(self, model: str) -> None:
        if self.workers[model]:
            self.workers[model] -= 1
            self.late[model] += self.unloading[model]
            self.running[model] = self.unloading[model] = 0
            self.crashes[model] += 1
            self.take(self.life.crashed(model, self.now, "why"))

    @rule(model=st.sampled_from(MODELS))
    def start(self, model: str) -> None:
        if self.life.state(model) == "ready":
            assert self.workers[model] == 1
            self.running[model] += 1
            self.life.started(model, self.now)

    @rule(model=st.sampled_from(MODELS), whole=st.booleans())
    def finish(self, model: str, whole: bool) -> None:
        if self.running[model]:
            self.running[model] -= 1
            if whole:
                self.crashes[model] = 0
                self.life.answered(model)
            self.take(self.life.finished(model, self.now))

    @rule(model=st.sampled_from(MODELS))
    def stop(self, model: str) -> None:
        self.take(self.life.stop(model, self.now))

    @rule(model=st.sampled_from(MODELS))
    def forgive(self, model: str) -> None:
        self.crashes[model] = 0
        self.life.forgive(model)

    @rule()
    def evict(self) -> None:
        effects = self.life.evict(self.now)
        assert len(effects) <= 1
        self.take(effects)

    @rule(model=st.sampled_from(MODELS))
    def unload_ends(self, model: str) -> None:
        """Late, too: the worker crashed before, and another may be there or on its way."""
        if self.unloading[model]:
            self.unloading[model] -= 1
            self.workers[model] -= 1
            self.life.unloaded(model, self.now)
        elif self.late[model]:
            self.late[model] -= 1
            self.life.unloaded(model, self.now)

    @rule(seconds=st.one_of(st.floats(0, 10), st.just(FAILED_FOR_S)))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.life.tick(self.now))

    @invariant()
    def nothing_twice(self) -> None:
        for model in MODELS:
            assert self.loading[model] + self.workers[model] <= 1
            assert self.running[model] == self.life.running(model)

    @invariant()
    def failed_after_three_crashes_in_a_row(self) -> None:
        for model in MODELS:
            there = bool(self.loading[model] or self.workers[model])
            assert (self.life.state(model) == "failed") == (self.crashes[model] >= CRASHES_MAX and not there)
            assert (model in self.life.failed()) == (self.life.state(model) == "failed")


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
