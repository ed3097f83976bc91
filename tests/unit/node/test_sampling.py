from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlb.bus.messages.infer import LogitBias, Sampling
from llmlb.node.engine.sampling import REPEAT_WINDOW, Logits, Sampler, best, log_probabilities

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def reference(logits: Logits, sampling: Sampling) -> npt.NDArray[np.float64]:
    """The probability of each token, as llama.cpp's chain has it, one filter after the other."""
    order = sorted(range(logits.size), key=lambda token: (-float(logits[token]), token))
    order = [token for token in order if logits[token] > -np.inf]
    if sampling.top_k:
        order = order[: sampling.top_k]

    def shares(temperature: float) -> npt.NDArray[np.float64]:
        values = np.array([float(logits[token]) for token in order])
        odds = np.exp((values - values.max()) / temperature)
        return odds / odds.sum()

    total, kept = 0.0, []
    for token, share in zip(order, shares(1.0), strict=True):
        kept.append(token)
        total += share
        if total >= (sampling.top_p or 1.0):
            break
    order = kept
    share = shares(1.0)
    order = [token for token, one in zip(order, share, strict=True) if one >= (sampling.min_p or 0.0) * share[0]]
    out = np.zeros(logits.size)
    out[order] = shares(sampling.temperature or 1.0)
    return out


def some(size: int, seed: int = 0, scale: float = 2.0) -> Logits:
    return (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)


class Only:
    """A grammar that allows these tokens."""

    def __init__(self, *allowed: int) -> None:
        self.allowed = allowed
        self.came: list[int] = []

    def allows(self, token: int) -> bool:
        return token in self.allowed

    def mask(self, logits: Logits) -> None:
        keep = logits[list(self.allowed)]
        logits[:] = -np.inf
        logits[list(self.allowed)] = keep

    def accept(self, token: int) -> None:
        self.came.append(token)


def draws(logits: Logits, sampling: Sampling, count: int, grammar: Only | None = None) -> list[int]:
    sampler = Sampler(sampling, grammar=grammar)
    out = []
    for _ in range(count):
        out.append(sampler.sample(logits))
        sampler.accept(out[-1])
    return out


floats = st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30, width=32), st.just(-math.inf))


@given(
    st.integers(0, 2**32), st.integers(1, 20_000), st.integers(0, 50), st.sampled_from([1, 5, 10_000]), st.booleans()
)
@settings(max_examples=40)
def test_best_is_exact(seed: int, size: int, k: int, values: int, holes: bool) -> None:
    random = np.random.default_rng(seed)
    logits = random.integers(-values, values, size).astype(np.float32) / 7
    logits[random.random(size) < 0.1] *= -1.0  # -0.0, too
    if holes:
        logits[random.random(size) < random.choice([0.5, 0.999])] = -np.inf
    expected = sorted(range(size), key=lambda token: (-float(logits[token]), token))
    assert best(logits, k).tolist() == (expected[:k] if k else expected)


@given(st.lists(floats, min_size=1, max_size=12), st.integers(0, 14))
def test_best_of_few_is_exact_with_ties_and_holes(values: list[float], k: int) -> None:
    logits = np.array(values, dtype=np.float32)
    expected = sorted(range(len(values)), key=lambda token: (-float(logits[token]), token))
    assert best(logits, k).tolist() == (expected[:k] if k else expected)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.05, "temperature": 1.5},
    ],
    ids=str,
)
def test_tokens_come_as_often_as_the_filters_say(fields: dict[str, float]) -> None:
    logits = some(12)
    logits[3] = logits[7]
    logits[5] = -np.inf
    sampling = Sampling(seed=1, **{**NEUTRAL, **fields})
    expected = reference(logits, sampling)
    count = 2500
    came = Counter(draws(logits, sampling, count))
    assert all(expected[token] > 0 for token in came)
    for token, share in enumerate(expected):
        assert abs(came[token] / count - share) < 4 * math.sqrt(share * (1 - share) / count) + 1e-9, token


@given(
    st.lists(floats, min_size=1, max_size=12),
    st.integers(0, 12),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(1e-3, 2),
    st.integers(),
)
def test_what_the_filters_exclude_never_comes(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    logits = np.array(values, dtype=np.float32)
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature, seed=seed)
    token = draws(logits, sampling, 1)[0]
    if np.isneginf(logits).all():
        assert token == 0
    else:
        edges = Sampling(top_k=top_k, top_p=min(1.0, top_p + 1e-9), min_p=max(0.0, min_p - 1e-9), temperature=1.0)
        assert reference(logits, edges)[token] > 0


def test_greedy_takes_the_first_of_the_best() -> None:
    assert draws(np.array([0, 5, 5, 1], dtype=np.float32), Sampling(temperature=0.0), 3) == [1, 1, 1]


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-3])
def test_the_smallest_temperatures_are_greedy(temperature: float) -> None:
    assert draws(some(50), Sampling(temperature=temperature, seed=1), 5) == [int(some(50).argmax())] * 5


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    logits = [some(100, seed) for seed in range(30)]
    sampling = Sampling(seed=42, temperature=1.0)
    whole = Sampler(sampling)
    out = []
    for one in logits:
        out.append(whole.sample(one))
        assert whole.sample(one) == out[-1], "asked again at the same place"
        whole.accept(out[-1])
    resumed = Sampler(sampling)
    for token in out[:13]:
        resumed.accept(token)
    for one, token in zip(logits[13:], out[13:], strict=True):
        assert resumed.sample(one) == token
        resumed.accept(token)
    assert draws(logits[0], Sampling(seed=43, temperature=1.0), 30) != draws(logits[0], sampling, 30)
    assert draws(logits[0], Sampling(seed=-1, temperature=1.0), 5) == draws(
        logits[0], Sampling(seed=2**64 - 1, temperature=1.0), 5
    )


def test_without_a_seed_answers_differ() -> None:
    flat = np.zeros(1000, dtype=np.float32)
    sampling = Sampling(**NEUTRAL)
    assert draws(flat, sampling, 10) != draws(flat, sampling, 10)


def test_what_the_grammar_forbids_is_drawn_anew_as_if_it_had_never_been_there() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125])).astype(np.float32)
    grammar = Only(1, 2)
    count = 2500
    out = draws(logits, Sampling(seed=3, **NEUTRAL), count, grammar)
    assert grammar.came == out
    assert set(out) == {1, 2}
    # 0.25 to 0.125; with the first draw taken again it would be 5 to 1.
    assert abs(out.count(1) / count - 2 / 3) < 0.03


def test_a_grammar_holds_for_greedy_too_and_outside_of_top_k() -> None:
    logits = some(5000)
    worst = int(logits.argmin())
    assert draws(logits, Sampling(temperature=0.0), 1, Only(worst)) == [worst]
    assert draws(logits, Sampling(temperature=1.0, seed=1), 1, Only(worst)) == [worst]


def test_a_grammar_that_allows_nothing_does_not_break_the_sampler() -> None:
    logits = np.full(9, -np.inf, dtype=np.float32)
    assert draws(logits, Sampling(temperature=1.0, seed=1), 1) == [0]
    assert draws(logits, Sampling(temperature=0.0), 1) == [0]


def adjusted(logits: Logits, sampling: Sampling, prompt: list[int], answer: list[int]) -> Logits:
    sampler = Sampler(sampling, prompt=prompt)
    for token in answer:
        sampler.accept(token)
    before = logits.copy()
    out = sampler._adjusted(logits)
    assert np.array_equal(before, logits), "the logits stay as they are"
    return out


@given(
    st.lists(st.integers(0, 9), max_size=80),
    st.lists(st.integers(0, 9), max_size=80),
    st.sampled_from([1.0, 1.5, 0.5]),
    st.sampled_from([0.0, 0.5, -1.0]),
    st.sampled_from([0.0, 0.25, -0.5]),
    st.lists(st.tuples(st.integers(0, 12), st.integers(-100, 100)), max_size=3),
)
def test_penalties_and_biases_are_those_of_llama_cpp_and_openai(
    prompt: list[int], answer: list[int], repeat: float, presence: float, frequency: float, bias: list[tuple[int, int]]
) -> None:
    logits = some(10)
    logits[4] = -np.inf
    sampling = Sampling(
        repeat_penalty=repeat,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=tuple(LogitBias(token_id=token, bias=value) for token, value in bias),
    )
    expected = logits.astype(np.float64)
    for token, value in bias:
        if token < 10:
            expected[token] += value
    for token in set([*prompt, *answer][-REPEAT_WINDOW:]):
        expected[token] *= repeat if expected[token] <= 0 else 1 / repeat
    for token, times in Counter(answer).items():
        expected[token] -= times * frequency + presence
    assert np.allclose(adjusted(logits, sampling, prompt, answer), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("repeat", [5e-324, 1e-45, 1e-38, 1e-3, 4.0])
@pytest.mark.parametrize("worst", [-2.0, 2.0])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 2.0])
@pytest.mark.filterwarnings("error")
def test_the_most_extreme_penalties_and_biases_leave_logits_that_are_numbers(
    repeat: float, worst: float, temperature: float
) -> None:
    logits = np.array([0.0, 1e-3, -30.0, 30.0, 500.0, -500.0, 7.0], dtype=np.float32)
    sampling = Sampling(
        **{**NEUTRAL, "temperature": temperature},
        repeat_penalty=repeat,
        presence_penalty=worst,
        frequency_penalty=worst,
        seed=1,
        logit_bias=tuple(LogitBias(token_id=token, bias=bias) for token, bias in ((0, -100), (1, 100), (6, 5e-324))),
    )
    seen = list(range(7)) * 40
    assert np.isfinite(adjusted(logits, sampling, seen, seen)).all()
    sampler = Sampler(sampling, prompt=seen)
    for _ in range(3):
        sampler.accept(sampler.sample(logits))


def test_biases_ban_and_force() -> None:
    logits = some(100)
    top = int(logits.argmax())
    assert draws(logits, Sampling(temperature=0.0, logit_bias=(LogitBias(token_id=top, bias=-100),)), 1) != [top]
    assert draws(logits, Sampling(temperature=1.0, logit_bias=(LogitBias(token_id=7, bias=100),)), 5) == [7] * 5


@given(st.lists(floats, min_size=2, max_size=12), st.integers(0, 5))
def test_log_probabilities_are_those_of_the_whole_vocabulary(values: list[float], top: int) -> None:
    logits = np.array([*values, 0.5], dtype=np.float32)
    own, leaders = log_probabilities(logits, 0, top)
    shares = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    assert math.exp(own) == pytest.approx(shares[0])
    assert [token for token, _ in leaders] == (best(logits, top).tolist() if top else [])
    assert all(math.exp(value) == pytest.approx(shares[token]) for token, value in leaders)
