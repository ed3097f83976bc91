"""Redrawing in place, and plain lines."""

from __future__ import annotations

import io
import os

import pytest

from llmlb.cli import pull_output
from llmlb.cli.pull_output import Plain, Terminal, output_for
from tests.unit.cli.fake_gateway import COMPLETED, GB, downloading, file, task
from tests.unit.cli.tiny_terminal import TinyTerminal

WHOLE = 6_400_000_000
END = [
    "pulling abc123def456... 100% ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ 6.4 GB",
    "verifying sha256 digest ✓",
    "writing manifest ✓",
    "success",
]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> TinyTerminal:
    made = TinyTerminal()
    monkeypatch.setattr(pull_output.Stream, "size", lambda self: tuple(made.size))
    return made


def test_a_bar_moves_in_place_and_nothing_is_left_of_it(screen: TinyTerminal) -> None:
    output = Terminal(screen)
    output.show(task(phase="manifest"))
    for step in range(5):
        output.show(downloading(file(step * GB, WHOLE), note="a note" if step % 2 else None))
        assert screen.text[0] == "pulling manifest ✓"
        assert screen.text[1].startswith(f"pulling abc123def456... {step * GB * 100 // WHOLE}% ")
        assert screen.text[2:] == (["  a note"] if step % 2 else [])
    output.show(COMPLETED)
    output.leave()
    output.say("run it with: llmlb node run a")
    assert screen.text == ["pulling manifest ✓", *END, "run it with: llmlb node run a"]


def test_a_frame_is_one_write(screen: TinyTerminal) -> None:
    output = Terminal(screen)
    for step in range(3):
        output.show(downloading(*(file(step, GB, f"{i:064x}") for i in range(5))))
    assert screen.writes == 3


def test_leaving_keeps_the_bars_and_drops_the_trouble(screen: TinyTerminal) -> None:
    output = Terminal(screen)
    output.show(downloading(file(GB, WHOLE)), "trying again for 9 s: connection refused")
    output.leave()
    output.say("bye")
    assert screen.text == [
        "pulling manifest ✓",
        "pulling abc123def456... 15% ▓▓░░░░░░░░░░░░░░░░░░ 1.0 GB/6.4 GB",
        "bye",
    ]


@pytest.mark.parametrize("columns", [78, 50, 40, 25, 12])
def test_a_terminal_that_becomes_narrower_loses_no_line_and_keeps_no_rest(screen: TinyTerminal, columns: int) -> None:
    output = Terminal(screen)
    output.say("before")
    for step in range(2):
        output.show(downloading(file(step, GB, "a" * 64), file(0, GB, "b" * 64), speed_bps=14_000_000, note="x" * 60))
        if not step:
            screen.wrap_to(columns)
    rest = "".join(screen.rows)
    assert rest.startswith("before" + "pulling manifest ✓")
    assert rest.count("aaaaaaaaa") == 1
    assert rest.count("bbbbbbbbb") == 1


def test_after_ctrl_z_the_lines_of_the_shell_stay(screen: TinyTerminal) -> None:
    output = Terminal(screen)
    output.show(downloading(file(1, GB)))
    screen.write("\n[1]+  Stopped\n")
    output._continued()
    output.show(downloading(file(2, GB)))
    assert "[1]+  Stopped" in screen.text


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Plain, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Plain(stream, clock), stream, clock


def test_plain_lines_have_no_bars_and_no_control_characters() -> None:
    output, stream, _ = plain()
    output.show(task(phase="manifest"))
    output.show(downloading(file(2_900_000_000, WHOLE), speed_bps=14_000_000))
    output.show(COMPLETED)
    assert stream.getvalue().splitlines() == [
        "pulling manifest ✓",
        "pulling abc123def456... 45% 2.9 GB/6.4 GB  14 MB/s  4m10s",
        "pulling abc123def456... 100% 6.4 GB",
        "verifying sha256 digest ✓",
        "writing manifest ✓",
        "success",
    ]


def test_a_plain_line_comes_each_ten_per_cent_but_not_more_than_one_in_five_seconds() -> None:
    output, stream, clock = plain()
    for second in range(101):
        clock.now = 100.0 + second
        output.show(downloading(file(second * GB, 200 * GB)))
    shares = [int(line.split("... ")[1].split("%")[0]) for line in stream.getvalue().splitlines()[1:]]
    assert shares == [0, 10, 20, 30, 40, 50]
    for after, lines in ((0.5, 7), (4.0, 7), (0.6, 8), (0.6, 8)):
        clock.now += after
        output.show(downloading(file((150 + lines) * GB, 200 * GB)))
        assert len(stream.getvalue().splitlines()) == lines


def test_a_slow_file_is_heard_of_once_a_minute() -> None:
    output, stream, clock = plain()
    for second in range(0, 301, 2):
        clock.now = 100.0 + second
        output.show(downloading(file(100 * GB + second * GB // 50, 400 * GB)))
    assert 3 <= len(stream.getvalue().splitlines()) <= 7


def test_a_plain_note_is_printed_once_though_it_counts_down() -> None:
    output, stream, _ = plain()
    for left in (20, 19, 18):
        output.show(downloading(file(0, GB), note=f"the hub limits requests (429); next try in {left} s"))
    assert stream.getvalue().count("429") == 1


def test_an_encoding_without_bars_gets_ascii() -> None:
    raw = io.BytesIO()
    output = Plain(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    output.show(COMPLETED)
    assert raw.getvalue().decode("ascii").splitlines()[0] == "pulling manifest ok"


def test_an_output_that_breaks_is_given_up() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        output = Plain(stream)
        for _ in range(3):
            output.show(COMPLETED)
            output.say("x" * 100_000)


@pytest.mark.parametrize(("term", "kind"), [("xterm", Terminal), ("dumb", Plain), ("unknown", Plain)])
def test_only_a_terminal_that_moves_its_cursor_is_redrawn(
    monkeypatch: pytest.MonkeyPatch, term: str, kind: type[object]
) -> None:
    monkeypatch.setenv("TERM", term)
    assert type(output_for(TinyTerminal())) is kind
    assert type(output_for(io.StringIO())) is Plain
