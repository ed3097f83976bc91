from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlb.node.engine.reasoning import FAMILIES, HARMONY, Markers, ThinkSplitter, opened_by

THINK = FAMILIES[0]
PLAIN = [family for family in FAMILIES if family is not HARMONY]


def split(pieces: list[str] | str, opened: Markers | None = None) -> tuple[str, str]:
    """Thinking and answer of what comes in these pieces."""
    splitter = ThinkSplitter(opened)
    parts = [*map(splitter.feed, pieces), splitter.finish()]
    return "".join(reasoning for reasoning, _ in parts), "".join(answer for _, answer in parts)


CASES: list[tuple[str, str, tuple[str, str]]] = [
    ("none", "Hello", ("", "Hello")),
    ("nothing at all", "", ("", "")),
    ("only whitespace", " \n", ("", " \n")),
    ("whitespace first", "\n Hello", ("", "\n Hello")),
    ("a block", "<think>\nSo.\n\nYes.\n</think>\n\nHello\n", ("So.\n\nYes.", "Hello\n")),
    ("whitespace before it", "\n <think>a</think>b", ("a", "b")),
    ("empty", "<think>\n\n</think>\n\nHello", ("", "Hello")),
    ("nothing after it", "<think>a</think>", ("a", "")),
    ("unclosed", "<think>\nI am still ", ("I am still", "")),
    ("unclosed, half a marker", "<think>a </thi", ("a </thi", "")),
    ("half an opening marker", "<thi", ("", "<thi")),
    ("another marker", "<thin>a", ("", "<thin>a")),
    ("later in the text", "Use <think> and </think>.", ("", "Use <think> and </think>.")),
    ("again in the text", "<think>a</think>b<think>c</think>", ("a", "b<think>c</think>")),
    ("another family's end", "<think>a</thinking></think>b", ("a</thinking>", "b")),
    ("two spaces of the answer", "<think>a</think>\n  b", ("a", "  b")),
    ("harmony, final only", "<|channel|>final<|message|>Hello", ("", "Hello")),
    (
        "harmony",
        "<|channel|>analysis<|message|>I\nthink. <|end|><|start|>assistant<|channel|>final<|message|>Hello\n<|return|>",
        ("I\nthink.", "Hello\n"),
    ),
    ("harmony, unclosed", "<|channel|>analysis<|message|>I think", ("I think", "")),
    ("harmony, in a header", "<|channel|>analysis<|message|>I<|end|><|start|>assistant<|chan", ("I", "")),
    ("harmony, first header", "<|channel|>analy", ("", "")),
    (
        "harmony, twice",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>c",
        ("a\nb", "c"),
    ),
    (
        "harmony, what it does",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>c",
        ("", "I look.\nc"),
    ),
    (
        "harmony, a call",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.now "
        '<|constrain|>json<|message|>{"a": 1}<|call|>',
        ("a", '<|call|>now\n{"a": 1}'),
    ),
    ("harmony, a call by its role", "to=functions.now<|channel|>commentary json<|message|>{}", ("", "<|call|>now\n{}")),
    ("words like harmony's", "to=functions.now is a name", ("", "to=functions.now is a name")),
]


@pytest.mark.parametrize(("answer", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_thinking_is_apart_from_the_answer(answer: str, expected: tuple[str, str]) -> None:
    assert split([answer]) == expected
    assert split(answer) == expected, "letter by letter"


@pytest.mark.parametrize("family", PLAIN, ids=[family.open for family in PLAIN])
def test_every_family_is_known_and_can_be_opened_by_the_prompt(family: Markers) -> None:
    assert split(f"{family.open}a{family.close}b") == ("a", "b")
    assert opened_by(f"<user>hi<assistant>{family.open}\n") == family
    assert split(f"\na {family.close}\n\nb", family) == ("a", "b")
    assert split("never closed", family) == ("never closed", "")


def test_a_prompt_that_closes_the_block_or_opens_none_does_not_begin_inside() -> None:
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n") is None
    assert opened_by("<|im_start|>assistant\n") is None
    assert opened_by("") is None


def test_harmony_can_be_opened_by_the_prompt_too() -> None:
    assert opened_by("<|start|>assistant<|channel|>analysis<|message|>") == HARMONY
    answer = "a<|end|><|start|>assistant<|channel|>final<|message|>b"
    assert split(answer, HARMONY) == ("a", "b")


def test_a_grammar_begins_with_the_answer() -> None:
    splitter = ThinkSplitter()
    seen = []
    for piece in (
        "<|channel|>analysis<|message|>a",
        "<|end|>",
        "<|start|>assistant",
        "<|channel|>final<|message|>",
        "b",
    ):
        splitter.feed(piece)
        seen.append(splitter.thinking)
    assert seen == [True, True, True, False, False]
    splitter = ThinkSplitter(THINK)
    assert splitter.thinking
    splitter.feed("a</think>")
    assert not splitter.thinking


PARTS = ["<think>", "</think>", "<|channel|>", "analysis", "final", "<|message|>", "<|end|>", "<|start|>assistant"]
PARTS += ["commentary to=functions.now", "<|call|>", " ", "\n", "a", "<", "</th", "<|", "[THINK]", "[/THINK]", "to="]


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), st.data())
@settings(max_examples=80)
def test_pieces_do_not_change_what_is_thinking(answer: str, data: st.DataObject) -> None:
    opened = data.draw(st.sampled_from([None, THINK, HARMONY]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    whole = split([answer], opened)
    assert split([answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)], opened) == whole
    assert split(answer, opened) == whole
