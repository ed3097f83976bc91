"""The tables of the benchmarks, and how they get into the document."""

from __future__ import annotations

import math

import pytest

from tests.bench.report import Bar, Check, checks_table, number, percentile, put, table, verdict

DOCUMENT = """# Benchmarks

Words before.

## One

<!-- one: written by make bench -->

old

<!-- end of one -->

Words between.

<!-- two: written by make bench -->

kept

<!-- end of two -->
"""


def test_a_part_takes_the_place_of_its_old_text_and_of_nothing_else() -> None:
    made = put(DOCUMENT, "one", "One", "new | text\n")
    assert made == DOCUMENT.replace("old", "new | text")


def test_a_part_that_is_written_twice_stands_there_once() -> None:
    once = put(DOCUMENT, "two", "Two", "new")
    assert put(once, "two", "Two", "new") == once


def test_a_new_part_goes_to_the_end_with_its_title() -> None:
    made = put(DOCUMENT, "three", "Three", "text")
    assert made.startswith(DOCUMENT.rstrip())
    assert made.endswith("## Three\n\n<!-- three: written by make bench -->\n\ntext\n\n<!-- end of three -->\n")


def test_a_part_without_an_end_is_refused_and_nothing_is_lost() -> None:
    with pytest.raises(ValueError, match="'one'"):
        put(DOCUMENT.replace("<!-- end of one -->", ""), "one", "One", "text")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.012345, "0.0123"),
        (0.25, "0.250"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (16.0, "16"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (-0.03, "-0.0300"),
        (-12.34, "-12.3"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_bar_is_met_at_its_limit_and_says_which_way_it_goes() -> None:
    assert Bar(0.25).holds(0.25)
    assert not Bar(0.25).holds(0.2501)
    assert Bar(0.8, at_least=True).holds(0.8)
    assert not Bar(0.8, at_least=True).holds(0.79)
    assert (str(Bar(8)), str(Bar(0.8, at_least=True))) == ("≤ 8", "≥ 0.800")


def test_what_was_not_measured_is_neither_good_nor_bad() -> None:
    assert verdict(None, Bar(1)) == ""
    assert verdict(math.nan, Bar(1)) == ""
    assert verdict(2.0, None) == ""


def test_a_check_shows_value_bar_and_verdict() -> None:
    rows = checks_table([Check("CPU", "ms", 0.3, Bar(0.25)), Check("lost", "", 0.0, Bar(0), "of 96")]).splitlines()
    assert rows[2:] == ["| CPU | ms | 0.300 | ≤ 0.250 | **not** |  |", "| lost |  | 0 | ≤ 0 | ok | of 96 |"]


def test_numbers_of_a_table_stand_on_the_right() -> None:
    assert table(("a", "b"), [("x", "1")]).splitlines() == ["| a | b |", "|---|---:|", "| x | 1 |"]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
