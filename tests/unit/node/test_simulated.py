"""The simulated engine without bus, pool and time: the clock is a number."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import ContextOverflow, EngineCrashed, InvalidRequest, LlmlbError, ModelLoadFailed, NodeBusy
from llmlb.bus.messages.infer import ChatMessage, InferRequest, Sampling
from llmlb.node.engine.interface import Engine, LoadOptions
from llmlb.node.engine.simulated import Fault, FaultScript, SimulatedEngine, SimulatedSpec
from llmlb.node.engine.simulated_pool import SimulatedSource
from llmlb.node.engine.simulated_script import VECTOR_SIZE, Script, token_text, vector
from llmlb.node.engine.worker import make_engine


def ask(text: str = "hi there", **fields: Any) -> InferRequest:
    sampling = {key: fields.pop(key) for key in ("seed", "max_tokens", "stop") if key in fields}
    return InferRequest(
        request_id="r",
        model="simulated/tiny",
        kind="chat",
        messages=(ChatMessage(role="user", content=text),),
        sampling=Sampling(**sampling),
        **fields,
    )


@dataclass
class Heard:
    """A sink: what each request was given, as (time, what, …)."""

    now: float = 0.0
    said: list[tuple[Any, ...]] = field(default_factory=list)
    ids: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    ends: dict[int, Any] = field(default_factory=dict)

    def progress(self, handle: int, phase: str, done: int, total: int) -> None:
        self.said.append((self.now, handle, phase, done, total))

    def delta(self, handle: int, piece: Any) -> None:
        self.said.append((self.now, handle, "delta", len(piece.token_ids)))
        self.ids.setdefault(handle, []).extend(piece.token_ids)
        self.text[handle] = self.text.get(handle, "") + piece.text

    def embedded(self, handle: int, index: int, vector: bytes) -> None:
        self.said.append((self.now, handle, "embedded", index, vector))

    def end(self, handle: int, reason: str, usage: Any, timings: Any, stop_text: str | None = None) -> None:
        self.ends[handle] = (reason, usage, timings)

    def failed(self, handle: int, error: LlmlbError) -> None:
        self.ends[handle] = error


class Bench:
    """An engine with a clock of its own, run until nothing is due any more."""

    def __init__(self, *faults: Fault, **spec: Any) -> None:
        self.heard = Heard()
        self.gaps: list[int] = []
        self.engine = SimulatedEngine(
            SimulatedSpec(**spec), FaultScript(faults), clock=lambda: self.heard.now, on_gap=self.gaps.append
        )

    def run(self, until: float = math.inf) -> Heard:
        while (due := self.engine.next_due()) < until and due < math.inf:
            self.heard.now = max(self.heard.now, due)
            assert self.engine.step(self.heard), "said to be due, and nothing was"
        if until < math.inf:
            self.heard.now = until
        return self.heard


def test_the_simulated_engine_is_an_engine() -> None:
    engine: Engine = SimulatedEngine(SimulatedSpec(), FaultScript())
    assert engine.slots == 4


@given(text=st.text(), seed=st.integers(0, 2**64 - 1), count=st.integers(0, 40))
def test_an_answer_depends_on_prompt_and_seed_alone(text: str, seed: int, count: int) -> None:
    one, two = Script.of(ask(text, seed=seed)), Script.of(ask(text, seed=seed).model_copy(update={"attempt": 2}))
    assert one.tokens(count) == two.tokens(count)
    assert one.text(count) == "".join(token_text(token) for token in one.tokens(count))


def test_other_prompts_and_other_seeds_get_other_answers() -> None:
    answers = {Script.of(request).text(8) for request in (ask("a"), ask("b"), ask("a", seed=1), ask("a", seed=2))}
    assert len(answers) == 4


@given(already=st.integers(0, 12), stop_at=st.none() | st.integers(0, 11), max_tokens=st.none() | st.integers(1, 12))
def test_a_continuation_is_the_rest_of_the_answer(already: int, stop_at: int | None, max_tokens: int | None) -> None:
    script = Script.of(ask())
    fields: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    if stop_at is not None:
        fields["stop"] = (token_text(script.token(stop_at))[:-1],)
    whole = Bench(answer_tokens=12)
    whole.engine.submit(1, ask(**fields))
    heard = whole.run()
    # What a client has: some deltas, all of them before the end.
    deltas = [row[3] for row in heard.said if row[2] == "delta"]
    had = sum(deltas[: min(already, len(deltas) - 1)])
    rest = Bench(answer_tokens=12)
    rest.engine.submit(1, ask(**fields, continuation=tuple(heard.ids[1][:had])))
    again = rest.run()
    assert heard.ids[1][:had] + again.ids[1] == heard.ids[1]
    assert Script.of(ask()).text(had) + again.text[1] == heard.text[1]
    assert again.ends[1][:2] == heard.ends[1][:2]


def test_a_continuation_of_something_else_is_refused() -> None:
    bench = Bench()
    with pytest.raises(InvalidRequest, match="continuation"):
        bench.engine.submit(1, ask(continuation=(1, 2, 3)))
    assert bench.engine.next_due() == math.inf


def test_tokens_come_at_the_rate_that_was_given() -> None:
    bench = Bench(tokens_per_s=10, first_token_delay_s=0.25, prefill_tokens_per_s=12, answer_tokens=4)
    bench.engine.submit(1, ask("one two"))  # "user: one two" has 3 words: 0.25 s of prefill
    heard = bench.run()
    assert [row[0] for row in heard.said] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert [row[2:] for row in heard.said] == [("delta", 1)] * 4
    reason, usage, timings = heard.ends[1]
    assert (reason, usage.prompt_tokens, usage.completion_tokens) == ("stop", 3, 4)
    assert (timings.queue_ms, timings.prefill_ms, timings.decode_ms) == pytest.approx((0, 500, 300))


def test_what_is_late_comes_in_one_piece() -> None:
    bench = Bench(tokens_per_s=10, answer_tokens=30)
    bench.engine.submit(1, ask())
    bench.heard.now = 2.05
    assert bench.engine.step(bench.heard)
    assert [row[2:] for row in bench.heard.said] == [("delta", 21)]
    assert not bench.engine.step(bench.heard), "nothing more is due"


@pytest.mark.parametrize(
    ("fields", "reason", "tokens"),
    [
        ({}, "stop", 8),
        ({"max_tokens": 3}, "length", 3),
        ({"max_tokens": 8}, "length", 8),
        ({"max_tokens": 99}, "stop", 8),
    ],
)
def test_an_answer_ends_by_itself_or_at_max_tokens(fields: dict[str, Any], reason: str, tokens: int) -> None:
    bench = Bench(answer_tokens=8)
    bench.engine.submit(1, ask(**fields))
    heard = bench.run()
    assert heard.ends[1][0] == reason
    assert heard.ids[1] == list(Script.of(ask()).tokens(tokens))
    assert heard.ends[1][1].completion_tokens == tokens


def test_the_context_cuts_an_answer_and_refuses_a_prompt() -> None:
    bench = Bench(context_length=6, answer_tokens=8)
    bench.engine.submit(1, ask("a b c"))
    assert bench.run().ends[1][0] == "length"
    assert bench.heard.ends[1][1].completion_tokens == 2
    with pytest.raises(ContextOverflow):
        bench.engine.submit(2, ask("a b c d e f"))


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it() -> None:
    script = Script.of(ask())
    bench = Bench(answer_tokens=8)
    bench.engine.submit(1, ask(stop=(token_text(script.token(5)),)))
    heard = bench.run()
    assert heard.text[1] == script.text(5)
    assert heard.ends[1][0] == "stop"


def test_requests_beyond_the_slots_wait_with_signs_of_life() -> None:
    bench = Bench(slots=1, tokens_per_s=1, answer_tokens=3)
    bench.engine.submit(1, ask("a"))
    bench.engine.submit(2, ask("b"))
    heard = bench.run()
    first_of_two = next(row[0] for row in heard.said if row[1] == 2 and row[2] == "delta")
    waits = [row[0] for row in heard.said if row[1] == 2 and row[2] == "queued"]
    assert first_of_two == pytest.approx(2.0)
    assert all(later - earlier <= 1 for earlier, later in zip([0, *waits], [*waits, first_of_two], strict=True))
    assert heard.ends[2][2].queue_ms == pytest.approx(2000)


def test_cancelling_gives_the_slot_to_the_next_at_once() -> None:
    bench = Bench(slots=1, tokens_per_s=1, answer_tokens=3)
    for handle in (1, 2, 3):
        bench.engine.submit(handle, ask(str(handle)))
    assert bench.engine.cancel(1)
    assert bench.engine.cancel(3), "a waiting one is forgotten as well"
    assert not bench.engine.cancel(1)
    heard = bench.run()
    assert set(heard.ids) == {2}
    assert heard.ends[2][2].queue_ms == 0


@given(after=st.integers(0, 8), lateness=st.floats(0, 5))
def test_a_crash_comes_after_just_so_many_tokens_however_late_the_timer(after: int, lateness: float) -> None:
    bench = Bench(Fault("crash", after_tokens=after), tokens_per_s=10, answer_tokens=8)
    bench.engine.submit(1, ask())
    bench.heard.now = lateness
    with pytest.raises(EngineCrashed):
        bench.run()
    assert bench.heard.ids.get(1, []) == list(Script.of(ask()).tokens(after))
    assert not bench.heard.ends


def test_a_hanging_request_says_nothing_more_and_keeps_its_slot() -> None:
    bench = Bench(Fault("hang", after_tokens=2), slots=1, answer_tokens=4)
    bench.engine.submit(1, ask("a"))
    bench.engine.submit(2, ask("b"))
    heard = bench.run(until=100)
    assert heard.ids[1] == list(Script.of(ask("a")).tokens(2))
    assert 2 not in heard.ids
    bench.engine.cancel(1)
    bench.run()
    assert heard.ends.keys() == {2}


def test_a_gap_is_told_once_and_the_answer_goes_on() -> None:
    bench = Bench(Fault("gap", after_tokens=2), answer_tokens=4)
    bench.engine.submit(1, ask())
    heard = bench.run()
    assert bench.gaps == [1]
    assert heard.ids[1] == list(Script.of(ask()).tokens(4))


def test_a_slow_first_token_is_announced_by_progress() -> None:
    bench = Bench(Fault("slow_first_token", seconds=3), answer_tokens=2)
    bench.engine.submit(1, ask())
    heard = bench.run()
    assert next(row[0] for row in heard.said if row[2] == "delta") == pytest.approx(3)
    assert sum(row[2] == "prefill" for row in heard.said) >= 3
    assert heard.ends[1][0] == "stop"


def test_faults_come_in_the_order_of_their_script() -> None:
    script = FaultScript(
        [Fault("busy", times=2), Fault("load_failure"), Fault("none", times=2), Fault("hang", times=None)]
    )
    kinds = [fault.kind if (fault := script.next_request()) else None for _ in range(6)]
    assert kinds == ["busy", "busy", "none", "none", "hang", "hang"]
    load = script.next_load()
    assert load is not None
    assert load.kind == "load_failure"
    assert script.next_load() is None
    script.add(Fault("load_failure"))
    assert script.next_load() is not None


def test_a_busy_engine_refuses_and_takes_nothing() -> None:
    bench = Bench(Fault("busy"))
    with pytest.raises(NodeBusy):
        bench.engine.submit(1, ask())
    assert bench.engine.next_due() == math.inf
    bench.engine.submit(2, ask())
    assert bench.run().ends[2][0] == "stop"


def test_each_input_gets_its_own_vector_of_length_one() -> None:
    bench = Bench()
    inputs = ("a b", (1, 2, 3), "a b")
    bench.engine.submit(1, InferRequest(request_id="r", model="simulated/tiny", kind="embedding", inputs=inputs))
    heard = bench.run()
    vectors = [row[4] for row in heard.said if row[2] == "embedded"]
    assert vectors == [vector(text) for text in inputs]
    assert vectors[0] == vectors[2] != vectors[1]
    assert math.hypot(*struct.unpack(f"<{VECTOR_SIZE}f", vectors[0])) == pytest.approx(1)
    assert heard.ends[1][1].prompt_tokens == 7
    assert heard.ends[1][1].completion_tokens == 0


@pytest.mark.parametrize("fields", [{"truncate": True}, {"truncate": False}])
def test_an_input_that_is_too_long_is_cut_only_when_asked_for(fields: dict[str, bool]) -> None:
    bench = Bench(context_length=2)
    request = InferRequest(request_id="r", model="simulated/tiny", kind="embedding", inputs=("a b c",), **fields)
    if fields["truncate"]:
        bench.engine.submit(1, request)
        assert bench.run().ends[1][1].prompt_tokens == 2
    else:
        with pytest.raises(ContextOverflow):
            bench.engine.submit(1, request)


def test_no_real_name_and_no_worker_gets_the_simulated_engine() -> None:
    for name in ("meta-llama/Llama-3.2-1B", "simulated", "simulated/", "x/simulated/tiny"):
        with pytest.raises(ValueError, match="simulated"):
            SimulatedSource([name])
    assert all(not model.info.aliases for model in SimulatedSource(["simulated/a"]).scan())
    options = LoadOptions("simulated/a", "/nonexistent", None, None, None, None)
    for format in ("simulated", "Simulated", "Safetensors"):
        with pytest.raises(ModelLoadFailed):
            make_engine(format, options, lambda share: None)


@pytest.mark.parametrize("fields", [{"tokens_per_s": 0}, {"slots": 0}, {"load_s": -1}, {"answer_tokens": 0}])
def test_a_spec_that_can_not_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|can't"):
        SimulatedSpec(**fields)
    with pytest.raises(ValueError, match="fault"):
        Fault("crash", times=0)
