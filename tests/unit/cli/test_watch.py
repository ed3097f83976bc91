"""--watch: in a terminal in place, elsewhere one block after the other."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

from llmlb.bus.errors import InvalidRequest, ModelUnknown
from llmlb.cli.exit_codes import Unreachable
from llmlb.cli.watch import Blocks, Painter, seconds_of, watch
from tests.unit.cli.tiny_terminal import TinyTerminal


@pytest.fixture(autouse=True)
def a_terminal_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


class Over(Exception):
    """Ends a watch that has looked often enough."""


def watched(looks: list[Any], stream: io.StringIO, *, as_json: bool = False) -> str:
    """What is printed of these looks; an exception among them is raised by the look."""
    left = list(looks)

    def look() -> Any:
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def sleep(_: float) -> None:
        if not left:
            raise Over

    before, sys.stdout = sys.stdout, stream
    try:
        with pytest.raises(Over):
            watch(look, str, as_json=as_json, interval=None, sleep=sleep)
    finally:
        sys.stdout = before
    return stream.getvalue()


def test_a_terminal_is_refreshed_in_place() -> None:
    terminal = TinyTerminal(40, 10)
    watched(["A\none\ntwo", "A\nthree"], terminal)
    assert terminal.text == ["A", "three"]


def test_what_is_wider_or_longer_than_the_window_is_cut_and_nothing_scrolls(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = TinyTerminal(20, 5)
    painter = Painter(terminal)
    monkeypatch.setattr(painter, "_size", lambda: (20, 5))
    for _ in range(3):
        painter.show("\n".join(["x" * 50, *"abcdefg"]), "")
    assert terminal.text == ["x" * 18 + "…", "a", "b", "and 5 more rows"]


def test_a_terminal_that_became_narrower_is_still_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = TinyTerminal(40, 10)
    painter = Painter(terminal)
    monkeypatch.setattr(painter, "_size", lambda: terminal.size)
    painter.show("a" * 30 + "\nb", "")
    terminal.wrap_to(20)
    painter.show("a" * 30 + "\nc", "")
    assert terminal.text == ["a" * 18 + "…", "c"]


def test_a_dumb_terminal_gets_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = TinyTerminal()
    watched(["a\nb", "c\nd"], terminal)
    assert terminal.text == ["a", "b", "c", "d"]


def test_a_pipe_gets_whole_blocks_apart_from_each_other() -> None:
    wide = "NAME" + " " * 200 + "ID"
    assert watched([f"{wide}\na", f"{wide}\nb"], io.StringIO()) == f"{wide}\na\n\n{wide}\nb\n"


def test_json_is_one_line_a_look() -> None:
    assert watched([{"a": 1}, {"a": 2}], io.StringIO(), as_json=True) == '{"a": 1}\n{"a": 2}\n'


def test_a_server_that_is_away_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    away = Unreachable("cannot reach llmlb: connection refused. Start it with: x")
    assert watched(["a\nb", away, away, "c\nd"], io.StringIO()) == "a\nb\n\nc\nd\n"
    assert capsys.readouterr().err == "trying again: cannot reach llmlb: connection refused\n", "said once"
    terminal = TinyTerminal(80, 10)
    watched(["a\nb", away], terminal)
    assert terminal.text == ["a", "b", "trying again: cannot reach llmlb: connection refused"]


@pytest.mark.parametrize("looks", [[Unreachable("x")], ["a", ModelUnknown("x")]])
def test_the_first_failure_and_what_is_refused_end_it(looks: list[Any]) -> None:
    left = iter(looks)

    def look() -> Any:
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    with pytest.raises(type(looks[-1])):
        watch(look, str, as_json=False, interval=None, sleep=lambda _: None)


@pytest.mark.parametrize("text", ["0", "50ms", "-1", "soon"])
def test_an_interval_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--interval"):
        seconds_of(text)


def test_intervals() -> None:
    parsed: list[Callable[[], float]] = [
        lambda: seconds_of(None),
        lambda: seconds_of("500ms"),
        lambda: seconds_of("1m"),
    ]
    assert [each() for each in parsed] == [2.0, 0.5, 60.0]


def test_trouble_of_a_pipe_is_said_again_when_it_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = Blocks(io.StringIO())
    for trouble in ("x", "x", "", "x"):
        blocks.show("a", trouble)
    assert capsys.readouterr().err == "x\nx\n"
