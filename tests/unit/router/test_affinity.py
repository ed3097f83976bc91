from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.router.affinity import AGE_S, MOST_NODES, Cuts, PrefixMap, estimate_tokens

SYSTEM = "You answer in verse. " * 20
TURNS = [f"{number}: " + "what else is there to say about it? " * 8 for number in range(8)]
LONG = "".join(f"line {number} of a long document\n" for number in range(20_000))


def noted(*prompts: tuple[str, list[str]]) -> PrefixMap:
    prefixes = PrefixMap()
    for node_id, parts in prompts:
        prefixes.remember(Cuts("m", parts), node_id, 0.0)
    return prefixes


def test_a_conversation_is_found_where_its_last_turn_was() -> None:
    prefixes = noted(("a", [SYSTEM, *TURNS[:3]]), ("b", ["something else entirely", *TURNS]))
    found = prefixes.lookup(Cuts("m", [SYSTEM, *TURNS[:5]]))
    assert found == {"a": len(SYSTEM) + sum(map(len, TURNS[:3]))}


def test_the_node_that_shares_the_most_comes_first() -> None:
    prefixes = noted(("a", [SYSTEM]), ("b", [SYSTEM, *TURNS[:2]]), ("c", [SYSTEM, TURNS[0]]))
    found = prefixes.lookup(Cuts("m", [SYSTEM, *TURNS]))
    assert list(found) == ["b", "c", "a"]
    assert found["a"] == len(SYSTEM)


def test_another_model_or_another_beginning_shares_nothing() -> None:
    prefixes = noted(("a", [SYSTEM, *TURNS]))
    assert prefixes.lookup(Cuts("other", [SYSTEM, *TURNS])) == {}
    assert prefixes.lookup(Cuts("m", ["X" + SYSTEM, *TURNS])) == {}
    assert prefixes.lookup(Cuts("m", [])) == {}


def test_where_one_message_ends_and_the_next_begins_counts() -> None:
    prefixes = noted(("a", [SYSTEM[:-5], SYSTEM[-5:] + TURNS[0]]))
    assert prefixes.lookup(Cuts("m", [SYSTEM, TURNS[0]])) == {}


@pytest.mark.parametrize("shared", [3_000, 30_000, 300_000])
def test_the_beginning_of_a_long_text_is_found_up_to_the_last_block(shared: int) -> None:
    prefixes = noted(("a", [LONG[:shared] + "then one thing" * 400]))
    found = prefixes.lookup(Cuts("m", [LONG[:shared] + "then another" * 400]))["a"]
    assert 0.88 * shared - 1024 <= found <= shared


def test_messages_too_short_to_matter_are_found_together() -> None:
    chat = [f"short message {number}" for number in range(60)]
    prefixes = noted(("a", chat[:50]))
    found = prefixes.lookup(Cuts("m", chat))["a"]
    assert sum(map(len, chat[:40])) <= found <= sum(map(len, chat[:50]))


def test_what_many_nodes_share_names_only_the_last_of_them() -> None:
    prefixes = PrefixMap()
    for number in range(100):
        prefixes.remember(Cuts("m", [SYSTEM, *TURNS[: number % 8]]), f"node{number}", float(number))
    found = prefixes.lookup(Cuts("m", [SYSTEM, *TURNS]))
    assert MOST_NODES <= len(found) <= MOST_NODES + 3
    assert set(found) <= {f"node{number}" for number in range(60, 100)}


def test_a_node_that_left_is_forgotten_and_may_come_back() -> None:
    prefixes = noted(("a", [SYSTEM]), ("b", [SYSTEM]))
    prefixes.forget_node("a")
    prefixes.forget_node("a")
    assert prefixes.lookup(Cuts("m", [SYSTEM])) == {"b": len(SYSTEM)}
    prefixes.remember(Cuts("m", [SYSTEM]), "a", 1.0)
    assert set(prefixes.lookup(Cuts("m", [SYSTEM]))) == {"a", "b"}


def test_a_model_that_a_node_unloaded_is_forgotten_there_alone() -> None:
    prefixes = noted(("a", [SYSTEM]))
    prefixes.remember(Cuts("other", [SYSTEM]), "a", 0.0)
    prefixes.forget_node("a", "m")
    assert prefixes.lookup(Cuts("m", [SYSTEM])) == {}
    assert prefixes.lookup(Cuts("other", [SYSTEM])) == {"a": len(SYSTEM)}


def test_what_was_computed_long_ago_is_not_counted_on() -> None:
    prefixes = noted(("a", [SYSTEM]))
    prefixes.remember(Cuts("m", ["x" * 500]), "b", AGE_S + 1.0)
    assert prefixes.lookup(Cuts("m", [SYSTEM])) == {}
    prefixes.remember(Cuts("m", [SYSTEM]), "a", AGE_S + 2.0)
    assert prefixes.lookup(Cuts("m", [SYSTEM])) == {"a": len(SYSTEM)}


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    prefixes = PrefixMap(most=50)
    for number in range(200):
        prefixes.remember(Cuts("m", [f"{number} " + SYSTEM]), f"node{number}", float(number))
        prefixes.remember(Cuts("m", [SYSTEM]), "steady", float(number))
        assert len(prefixes) <= 50
    assert prefixes.lookup(Cuts("m", ["0 " + SYSTEM])) == {}
    assert prefixes.lookup(Cuts("m", [SYSTEM])) == {"steady": len(SYSTEM)}
    assert "node199" in prefixes.lookup(Cuts("m", ["199 " + SYSTEM]))


def test_a_prompt_larger_than_the_map_keeps_its_beginning() -> None:
    prefixes = PrefixMap(most=4)
    prefixes.remember(Cuts("m", [LONG]), "a", 0.0)
    assert len(prefixes) == 4
    assert prefixes.lookup(Cuts("m", [LONG])) == {"a": 4096}


def test_cuts_are_computed_once_and_no_further_than_they_are_asked_for() -> None:
    class Counted(list[str]):
        read = 0

        def __iter__(self) -> Iterator[str]:
            for part in super().__iter__():
                self.read += 1
                yield part

    prefixes, parts = noted(("a", TURNS)), Counted([SYSTEM, *TURNS])
    prompt = Cuts("m", parts)
    assert prefixes.lookup(prompt) == {}
    assert parts.read == 1, "nobody knows its beginning"
    prefixes.remember(prompt, "b", 1.0)
    prefixes.remember(prompt, "c", 2.0)
    assert parts.read == len(parts)
    whole = len(SYSTEM) + sum(map(len, TURNS))
    assert prefixes.lookup(prompt) == {"b": whole, "c": whole}
    assert list(prompt) == list(Cuts("m", [SYSTEM, *TURNS]))


def test_bytes_are_as_good_as_text() -> None:
    prefixes = PrefixMap()
    prefixes.remember(Cuts("m", [b"\xff" * 5000]), "a", 0.0)
    assert prefixes.lookup(Cuts("m", [b"\xff" * 9000]))["a"] >= 4096


@pytest.mark.parametrize(("characters", "tokens"), [(-3, 0), (0, 0), (1, 1), (4, 1), (5, 2), (4000, 1000)])
def test_four_characters_are_about_a_token(characters: int, tokens: int) -> None:
    assert estimate_tokens(characters) == tokens


texts = st.lists(st.text("ab", max_size=400).map(lambda text: text * 9), max_size=12)


@given(texts, texts, texts)
def test_never_more_is_shared_than_the_prompts_have_in_common(
    common: list[str], one: list[str], other: list[str]
) -> None:
    prefixes = noted(("a", common + one))
    found = prefixes.lookup(Cuts("m", common + other)).get("a", 0)
    first, second = "".join(common + one), "".join(common + other)
    same = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    assert found <= same
    size = sum(map(len, common))
    assert found >= size - max(256, size // 15)
