"""Markdown as it streams: what is shown, and that it does not depend on the pieces it came in."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmlb.cli.repl_markdown import Markdown
from llmlb.cli.repl_wrap import width_of

BOLD, ITALIC, CODE, DIM, RESET = "\x1b[1m", "\x1b[3m", "\x1b[36m", "\x1b[2m", "\x1b[0m"
SGR = re.compile(r"\x1b\[[0-9;]*m")


def drawn(text: str, columns: int = 200, piece: int = 1) -> str:
    markdown = Markdown(lambda: columns)
    return "".join(markdown.feed(text[at : at + piece]) for at in range(0, len(text), piece)) + markdown.close()


def bare(text: str) -> str:
    return SGR.sub("", text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words\n", "plain words\n"),
        ("a **bold word** b", f"a {BOLD}bold word{RESET} b"),
        ("an *italic* and _another_ one", f"an {ITALIC}italic{RESET} and {ITALIC}another{RESET} one"),
        ("***both***.", f"\x1b[1;3mboth{RESET}."),
        ("**bold *both***", f"{BOLD}bold{RESET} \x1b[1;3mboth{RESET}"),
        ("`code` here", f"{CODE}code{RESET} here"),
        ("``a`b``", f"{CODE}a`b{RESET}"),
        ("## A title\ntext", f"{BOLD}A title{RESET}\ntext"),
        ("# A title", f"\x1b[1;4mA title{RESET}"),
        ("- one\n* two\n  + three", "• one\n• two\n  • three"),
        ("1. one\n2) two", "1. one\n2) two"),
        ("> said", f"{DIM}│ {RESET}said"),
        ("---\n", f"{DIM}{'─' * 40}{RESET}\n"),
        ("\\*not italic\\*", "*not italic*"),
    ],
)
def test_marks_become_styles(text: str, shown: str) -> None:
    assert drawn(text) == shown
    assert drawn(text, piece=1000) == shown


@pytest.mark.parametrize(
    "text",
    [
        "2 * 3 * 4 = 24",
        "rm *.py and *.txt",
        "f(*args, **kwargs)",
        "snake_case_name and __init__",
        "an `unclosed tick",
        "an **unclosed mark",
        "#hashtag",
        "-5 degrees",
        "2024 was a year. 3.14 is pi",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "a [link](http://example.org) and <b>html</b>",
        "2**8 is 256",
        "**",
        "*" * 200,
        "-" * 200 + "x",
        "`" * 200,
        "* ",
        "a\n\n\nb",
        "",
    ],
)
def test_what_is_no_mark_stays_as_it_is(text: str) -> None:
    assert bare(drawn(text)).rstrip() == text.rstrip()


def test_code_is_not_wrapped_and_its_marks_stay() -> None:
    text = "```python\ndef f(**k):  # a *long* line with `ticks`, ### and wide\n\n    - 1\n```\nafter"
    assert bare(drawn(text, columns=20)) == text
    assert CODE in drawn(text)


def test_a_fence_ends_with_one_as_long_and_three_ticks_in_a_line_are_none() -> None:
    text = "````\n```\nstill **code**\n````\nafter **bold**"
    assert bare(drawn(text)) == "````\n```\nstill **code**\n````\nafter bold"
    assert bare(drawn("```x``` is code")) == "x is code"


def test_words_go_to_the_next_line_whole_and_items_stay_indented() -> None:
    lines = bare(drawn("- one two three four five six seven\n1. eight nine ten eleven twelve", columns=16)).split("\n")
    assert lines == [
        "• one two three",
        "  four five six",
        "  seven",
        "1. eight nine",
        "   ten eleven",
        "   twelve",
    ]
    assert bare(drawn("> one two three four", columns=12)) == "│ one two\n│ three\n│ four"


def test_wide_characters_take_two_columns_and_a_full_stop_begins_no_line() -> None:
    lines = bare(drawn("日本語のテキストは幅が二倍です。そうですね。", columns=13)).split("\n")
    assert all(sum(map(width_of, line)) <= 12 for line in lines)
    assert "".join(lines) == "日本語のテキストは幅が二倍です。そうですね。"
    assert not any(line.startswith("。") for line in lines)


def test_an_address_longer_than_a_line_is_not_broken() -> None:
    address = "http://example.org/" + "a" * 60
    assert address in bare(drawn(f"see {address} now", columns=30))


def test_the_first_piece_is_shown_at_once_and_a_word_near_the_edge_whole() -> None:
    markdown = Markdown(lambda: 34)
    assert markdown.feed("Hel") == "Hel"
    assert markdown.feed("lo") == "lo"
    assert markdown.feed(" there, all of you, extra") == " there, all of you,"
    assert markdown.feed("ordinary people") == "\nextraordinary people"


def test_a_long_word_near_the_edge_does_not_wait_for_its_end() -> None:
    markdown = Markdown(lambda: 34)
    assert markdown.feed("Hello there, all of you, http") == "Hello there, all of you,"
    assert markdown.feed("://example.org/") == "\nhttp://example.org/"
    assert markdown.feed("a/b/c") == "a/b/c"


def test_a_number_is_shown_at_once() -> None:
    markdown = Markdown(lambda: 80)
    assert markdown.feed("42") == "42"
    assert markdown.feed(".") == "."


def test_a_models_escape_sequences_do_not_reach_the_terminal() -> None:
    shown = drawn("a\x1b]0;owned\x07b\x1b[2Jc\x9bd\re\n```\n\x1b[31mred\n```")
    assert not re.search(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?!\[[0-9;]*m)", shown)
    assert "\x1b[31m" not in shown


def test_styles_end_with_the_line_and_with_the_answer() -> None:
    long = "**" + "bold " * 30
    assert drawn(long).endswith(RESET)
    assert "\x1b" not in drawn(long + "\nafter").split("\n")[1]


ALPHABET = st.text(alphabet="ab *_`#->|\n1.\\~語 ", max_size=120)


@example(">>> a", 1, 8)
@example("> > >", 2, 8)
@example("*a**", 1, 60)
@example("*" + "a" * 70 + "*", 1, 60)
@example("`" + "a" * 70 + "` a", 1, 60)
@given(ALPHABET, st.integers(1, 7), st.integers(8, 60))
def test_nothing_is_lost_and_pieces_do_not_matter(text: str, piece: int, columns: int) -> None:
    one, other = drawn(text, columns, piece), drawn(text, columns, 1000)
    squeezed = [re.sub(r"[\s│]", "", bare(it)) for it in (one, other)]
    assert squeezed[0] == squeezed[1]
    # Every letter comes out, in its order.
    assert re.sub(r"[^ab語]", "", squeezed[0]) == re.sub(r"[^ab語]", "", text)
    assert one.count("\x1b[0m") * 2 == one.count("\x1b["), "what is switched on is switched off"
