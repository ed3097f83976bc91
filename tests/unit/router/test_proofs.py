"""When a node that failed gets the requests back: its probe runs well, or it is another process."""

from __future__ import annotations

from typing import Any

from llmlb.bus.messages.models import ModelInfo
from llmlb.bus.messages.nodes import Heartbeat, LoadedModel
from llmlb.router.breaker import FAST_S, OPEN_S, Breakers
from llmlb.router.journey import Attempt
from llmlb.router.loads import Loads
from llmlb.router.placement import Ask
from llmlb.router.proofs import Proofs

NODE, MODEL = "a" * 32, "simulated/one"
ASK = Ask(prompt_tokens=10, max_tokens=10)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def beat(instance: str) -> Heartbeat:
    fields: dict[str, Any] = {"version": "1", "name": "n", "machine": "m", "gateway": "g:1", "uptime_s": 1.0}
    loaded = LoadedModel(name=MODEL, ready=True, slots=4, running=0)
    return Heartbeat(
        node_id=NODE, instance=instance, inventory=1, models_ready=1, models_total=1, loaded=(loaded,), **fields
    )


def info() -> ModelInfo:
    return ModelInfo(
        name=MODEL,
        format="GGUF",
        size_bytes=1,
        architecture="simulated",
        context_length=4096,
        source="Local",
        readonly=True,
        created_at=0,
    )


def failed_node() -> tuple[Clock, Loads]:
    """One node, whose breaker has just become half-open."""
    clock = Clock()
    loads = Loads(Breakers(), clock)
    hear(loads, "first")
    assert loads.place(MODEL, ASK) is not None
    loads.failed(NODE, MODEL, 0.0)
    loads.tick()
    assert loads.place(MODEL, ASK) is None
    clock.now += OPEN_S + 0.1
    return clock, loads


def hear(loads: Loads, instance: str) -> None:
    loads.heard(beat(instance), {MODEL: info()}, {MODEL: MODEL}, usable=True)


def probe(clock: Clock, loads: Loads, proofs: Proofs) -> Attempt:
    """The one request that may go there."""
    assert loads.place(MODEL, ASK) is not None
    loads.started(NODE, MODEL)
    attempt = Attempt(NODE, MODEL, "", clock.now)
    proofs.began(attempt)
    assert loads.place(MODEL, ASK) is None, "one at a time"
    return attempt


def test_a_probe_that_brings_tokens_for_a_while_lets_the_others_in_before_its_answer_is_over() -> None:
    clock, loads = failed_node()
    proofs = Proofs(loads)
    attempt = probe(clock, loads, proofs)
    attempt.tokens = 5
    proofs.tick(clock.now)
    assert loads.place(MODEL, ASK) is None, "too early to tell"
    clock.now += FAST_S
    proofs.tick(clock.now)
    assert loads.place(MODEL, ASK) is not None


def test_a_probe_that_brings_nothing_proves_nothing() -> None:
    clock, loads = failed_node()
    proofs = Proofs(loads)
    probe(clock, loads, proofs)
    clock.now += 10 * FAST_S
    proofs.tick(clock.now)
    assert loads.place(MODEL, ASK) is None


def test_a_probe_that_ended_is_not_asked_any_more() -> None:
    clock, loads = failed_node()
    proofs = Proofs(loads)
    attempt = probe(clock, loads, proofs)
    attempt.tokens = 5
    proofs.ended(attempt)
    loads.failed(NODE, MODEL, 0.1)
    clock.now += FAST_S
    proofs.tick(clock.now)
    assert loads.breakers.state(NODE, MODEL, clock.now) != "closed"


def test_a_node_that_was_started_again_has_not_failed_yet() -> None:
    _, loads = failed_node()
    loads.failed(NODE, MODEL, 0.0)
    hear(loads, "second")
    for _ in range(4):
        assert loads.place(MODEL, ASK) is not None
        loads.started(NODE, MODEL)
