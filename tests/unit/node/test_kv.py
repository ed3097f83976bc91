from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from llmlb.node.engine.kv import (
    BLOCK,
    COPY_MIN,
    Guesser,
    Held,
    choose,
    common_prefix,
    large_call,
    large_part,
    reusable,
    runs,
)

Cell = tuple[int, str]
"""A token, and the kind of call that computed it."""


def cold(prompt: list[int]) -> list[Cell]:
    """What the cache holds when nothing is reused: kinds count from the start of the text."""
    large = large_part(len(prompt))
    return [(token, "large" if at < large else "small") for at, token in enumerate(prompt)]


class Cache:
    """Sequences of a context that are filled as the engine does it, and what each cell was computed by."""

    def __init__(self, slots: int) -> None:
        self.cells: list[list[Cell]] = [[] for _ in range(slots)]
        self.held = [Held() for _ in range(slots)]
        self.used_at = [0.0] * slots
        self.now = 0.0

    def run(self, prompt: list[int], answer: list[int], free: list[int], stop_at: int | None = None) -> int:
        """Prefill and decode. ``stop_at``: cancelled when so many positions are there. What was reused."""
        choice = choose(prompt, free, self.held, self.used_at)
        assert choice.sequence in free, "a busy sequence was picked"
        assert 0 <= choice.reuse < max(1, len(prompt)), "the last token's logits are needed"
        if choice.copy_from is not None:
            assert choice.copy_from != choice.sequence
            assert choice.reuse >= COPY_MIN, "a copy has to be worth it"
            self.cells[choice.sequence] = list(self.cells[choice.copy_from])
        cells = self.cells[choice.sequence] = self.cells[choice.sequence][: choice.reuse]
        assert len(cells) == choice.reuse
        large = large_part(len(prompt))
        assert not large or choice.reuse <= large - BLOCK, "a large call has so many rows at least"
        cells += cold(prompt)[choice.reuse :]
        assert cells == cold(prompt), "as if nothing had been reused"
        cells += [(token, "small") for token in answer]
        del cells[stop_at if stop_at is not None and stop_at >= choice.reuse else len(cells) :]
        known = [*prompt, *answer][: len(cells)]
        self.held[choice.sequence] = Held(known, min(len(known), large))
        self.now += 1
        self.used_at[choice.sequence] = self.now
        return choice.reuse


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=50)
def test_whatever_came_before_the_cache_is_as_if_nothing_had(seed: int, slots: int) -> None:
    chance = random.Random(seed)
    cache = Cache(slots)
    texts: list[list[int]] = [[]]
    for _ in range(12):
        base = chance.choice(texts)
        size = chance.choice([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, chance.randrange(6 * BLOCK)])
        prompt = base[: chance.choice([len(base), chance.randrange(len(base) + 1)])]
        prompt = [*prompt, *(chance.randrange(3) for _ in range(size))] or [0]
        answer = [chance.randrange(3) for _ in range(chance.randrange(100))]
        free = chance.sample(range(slots), chance.randint(1, slots))
        cache.run(prompt, answer, free, chance.choice([None, chance.randrange(len(prompt) + len(answer))]))
        texts += [prompt, prompt + answer]


def test_a_conversation_that_goes_on_needs_only_what_is_new() -> None:
    cache = Cache(2)
    prompt, answer = list(range(300)), list(range(300, 340))
    assert cache.run(prompt, answer, [0, 1]) == 0
    turn = [*prompt, *answer, *range(400, 500)]
    assert cache.run(turn, [], [0, 1]) == 300, "the answer was computed small, and is large now"
    assert cache.run(turn, [], [0, 1]) == len(turn) - BLOCK, "all but one large call"


def test_a_large_call_is_left_of_a_prompt_that_is_cached() -> None:
    held = Held(list(range(256)), large=192)
    assert reusable(held, list(range(150))) == 150 - BLOCK
    assert reusable(held, list(range(BLOCK))) == 0
    assert reusable(held, list(range(300))) == 192
    assert reusable(held, [*range(100), *[9] * 20]) == 120 - BLOCK
    assert reusable(held, [*range(100), *[9] * 100]) == 100
    assert reusable(held, list(range(40))) == 0, "computed large, and wanted small"
    assert reusable(Held(list(range(60))), list(range(40))) == 39


@given(st.integers(BLOCK, 3000), st.integers(0, 512))
def test_large_calls_are_never_too_short_nor_too_long(left: int, room: int) -> None:
    while left:
        size = large_call(left, room)
        assert BLOCK <= size <= max(room, 2 * BLOCK - 1)
        left -= size


def test_nothing_is_reusable_of_or_for_nothing() -> None:
    assert reusable(Held(), [1, 2]) == 0
    assert reusable(Held([1, 2], 0), []) == 0
    assert reusable(Held([1, 2], 0), [1]) == 0


def test_a_prompt_without_text_takes_the_sequence_that_was_used_least_recently() -> None:
    held = [Held([1, 2, 3], 0), Held([4, 5, 6], 0), Held([7], 0)]
    assert choose([], [0, 1, 2], held, [3.0, 1.0, 2.0]).sequence == 1


def test_a_shared_beginning_is_copied_rather_than_taken_from_another_conversation() -> None:
    shared = list(range(10 * BLOCK))
    long = Held(shared + list(range(5000, 5000 + 12 * BLOCK)), large=20 * BLOCK)
    prompt = [*shared, *range(9000, 9100)]
    choice = choose(prompt, [0, 1], [long, Held()], [1.0, 0.0])
    assert (choice.sequence, choice.reuse, choice.copy_from) == (1, 10 * BLOCK, 0)
    choice = choose(prompt, [1], [long, Held()], [1.0, 0.0])
    assert (choice.sequence, choice.copy_from) == (1, 0), "of a busy one, too"
    choice = choose(prompt, [0], [long, Held()], [1.0, 0.0])
    assert (choice.sequence, choice.reuse, choice.copy_from) == (0, 10 * BLOCK, None)


def test_without_reuse_an_empty_sequence_comes_before_the_least_recently_used_one() -> None:
    held = [Held([1] * 70, 64), Held(), Held([2] * 70, 64)]
    assert choose([9, 9], [0, 1, 2], held, [1.0, 5.0, 2.0]).sequence == 1
    assert choose([9, 9], [0, 2], held, [3.0, 5.0, 2.0]).sequence == 2


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_common_prefix_is_the_longest(one: list[int], other: list[int]) -> None:
    expected = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    assert common_prefix(one, other) == expected


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_a_guess_is_what_followed_last_time_and_always_a_token(prompt: list[int], answer: list[int]) -> None:
    guesser = Guesser(prompt)
    for token in answer:
        guesser.add(token)
    seen = prompt + answer
    follows = {pair: seen[at + 2] for at, pair in enumerate(pairwise(seen)) if at + 2 < len(seen)}
    assert guesser.guess() >= 0
    if len(seen) > 1 and (seen[-2], seen[-1]) in follows:
        assert guesser.guess() == follows[seen[-2], seen[-1]]


@given(st.sets(st.integers(0, 12)))
def test_runs_are_groups_of_neighbours(sequences: set[int]) -> None:
    groups = runs(sorted(sequences))
    assert [one for group in groups for one in group] == sorted(sequences)
    assert all(b == a + 1 for group in groups for a, b in pairwise(group))
    assert all(second[0] > first[-1] + 1 for first, second in pairwise(groups))
