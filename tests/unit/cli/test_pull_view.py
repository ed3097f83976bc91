"""What a pull looks like, without a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.cli.pull_view import PullView, bar, percent, progress_line, time_left
from llmlb.cli.render import columns_of
from tests.unit.cli.fake_gateway import COMPLETED, GB, downloading, file, task

DIGEST = "abc123def456"
WHOLE = 6_400_000_000


def frames(states: Iterable[dict[str, Any]], width: int = 80, height: int = 24) -> tuple[list[str], list[list[str]]]:
    """All settled lines, and the live ones of each frame."""
    view, settled, live = PullView(), [], []
    for state in states:
        frame = view.frame(state, width, height)
        settled += frame.settled
        live.append([*frame.live, *frame.notes])
    return settled, live


def test_the_bar_of_the_contract() -> None:
    assert progress_line(DIGEST, 2_900_000_000, WHOLE, 80) == (
        "pulling abc123def456... 45% ▓▓▓▓▓▓▓▓░░░░░░░░░░░░ 2.9 GB/6.4 GB"
    )
    assert progress_line(DIGEST, WHOLE, WHOLE, 80) == "pulling abc123def456... 100% ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ 6.4 GB"


def test_speed_and_time_left_stand_behind_the_bar_while_it_runs() -> None:
    line = progress_line(DIGEST, 2_900_000_000, WHOLE, 80, 14_000_000)
    assert line == "pulling abc123def456... 45% ▓▓▓▓▓▓▓▓░░░░░░░░░░░░ 2.9 GB/6.4 GB  14 MB/s  4m10s"
    assert columns_of(line) <= 79
    assert "/s" not in progress_line(DIGEST, WHOLE, WHOLE, 80, 14_000_000)


def test_the_lines_of_a_whole_pull_are_those_of_the_contract() -> None:
    begun = downloading(file(0, WHOLE))
    half = downloading(file(WHOLE // 2, WHOLE))
    fetched = downloading(file(WHOLE, WHOLE), phase="verifying")
    writing = downloading(file(WHOLE, WHOLE), phase="writing")
    settled, live = frames([task(phase="manifest"), begun, half, fetched, writing, COMPLETED])
    assert settled == [
        "pulling manifest ✓",
        "pulling abc123def456... 100% ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ 6.4 GB",
        "verifying sha256 digest ✓",
        "writing manifest ✓",
        "success",
    ]
    firsts = [lines[0] if lines else "" for lines in live]
    assert firsts[0].startswith("pulling manifest ")
    assert firsts[1].startswith("pulling abc123def456... 0% ░░░░░░░░░░░░░░░░░░░░ 0 B/6.4 GB")
    assert firsts[2].startswith("pulling abc123def456... 50% ")
    assert firsts[3].startswith("verifying sha256 digest 0%")
    assert firsts[4].startswith("writing manifest ")
    assert live[5] == []


@given(st.lists(st.sampled_from(["manifest", "downloading", "verifying", "writing"]), max_size=6))
def test_however_few_states_are_seen_the_end_is_the_same(phases: list[str]) -> None:
    seen = [
        downloading(file(WHOLE, WHOLE), phase=phase) if phase != "manifest" else task(phase=phase) for phase in phases
    ]
    settled, _ = frames([*seen, COMPLETED])
    assert len(settled) == 5
    assert settled[-1] == "success"


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_pull_without_success_never_says_so(status: str) -> None:
    settled, live = frames([downloading(file(5, WHOLE)), downloading(file(5, WHOLE), status=status, phase="done")])
    assert settled == ["pulling manifest ✓"]
    assert live[-1] == []


def test_every_file_has_a_bar_and_the_whole_a_line() -> None:
    files = [
        file(700, 700, None, "config.json"),
        file(GB, 5 * GB, "a" * 64, "x-00001-of-00002.safetensors"),
        file(0, 5 * GB, "b" * 64, "x-00002-of-00002.safetensors"),
    ]
    settled, (live,) = frames([downloading(*files, speed_bps=10_000_000, eta_s=900.0)])
    assert settled == ["pulling manifest ✓", "pulling config.json... 100% ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ 700 B"]
    assert live == [
        "pulling aaaaaaaaaaaa... 20% ▓▓▓░░░░░░░░░░░░░░░░░ 1.0 GB/5.0 GB  10 MB/s  6m40s",
        "pulling bbbbbbbbbbbb... 0% ░░░░░░░░░░░░░░░░░░░░ 0 B/5.0 GB",
        "total 10% 1.0 GB/10.0 GB  10 MB/s  15m00s",
    ]


def test_two_files_on_their_way_share_the_speed_in_the_total() -> None:
    _, (live,) = frames([downloading(file(1, 9, "a" * 64), file(2, 9, "b" * 64), speed_bps=1, eta_s=15.0)])
    assert [" B/s" in line for line in live] == [False, False, True]


def test_a_file_that_begins_anew_has_a_bar_again_and_is_told_once_more() -> None:
    states = [downloading(file(done, GB)) for done in (GB, 5, GB, GB)]
    settled, live = frames(states)
    assert [line.split()[1] for line in settled] == ["manifest", "abc123def456...", "abc123def456..."]
    assert len(live[1]) == 1


def test_a_note_stands_below_and_goes_away() -> None:
    note = "the hub limits requests (429); next try in 20 s"
    _, live = frames([downloading(file(1, 9), note=note), downloading(file(2, 9))])
    assert live[0][-1] == f"  {note}"
    assert len(live[1]) == 1


def test_a_task_that_waits_says_so_after_a_moment() -> None:
    waiting = task(status="pending", phase="waiting")
    _, live = frames([waiting] * 6)
    assert [len(lines) for lines in live] == [1, 1, 1, 1, 2, 2]
    assert "waiting for its turn" in live[-1][1]


def test_more_files_than_the_screen_has_lines_are_counted() -> None:
    files = [file(0, GB, f"{number:064x}") for number in range(40)]
    files[7] = file(5, GB, "f" * 64)
    _, (live,) = frames([downloading(*files)], height=10)
    assert len(live) == 8
    assert live[0].startswith("pulling ffffffffffff")
    assert live[-2] == "and 34 more files"


def test_what_comes_from_elsewhere_moves_no_cursor() -> None:
    evil = downloading(file(1, 9, None, "\x1b[2J\n.gguf"), note="\x1b]0;x\x07")
    settled, live = frames([evil])
    assert all(line.isprintable() for line in [*settled, *live[0]])


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    files=st.lists(st.tuples(st.integers(0, 10**13), st.integers(1, 10**13), st.booleans()), max_size=12),
    speed=st.integers(0, 10**10),
    note=st.none() | st.text(max_size=120),
    phase=st.sampled_from(["waiting", "manifest", "downloading", "verifying", "writing"]),
)
def test_live_lines_fit_every_screen(
    width: int, height: int, files: list[tuple[int, int, bool]], speed: int, note: str | None, phase: str
) -> None:
    made = [
        file(min(done, total), total, f"{i:064x}" if hex else None, "モデル-" * i)
        for i, (done, total, hex) in enumerate(files)
    ]
    state = downloading(*made, speed_bps=speed, note=note, phase=phase, eta_s=float(speed))
    frame = PullView().frame(state, width, height)
    live = [*frame.live, *frame.notes]
    assert all(columns_of(line) <= width for line in live)
    assert len(live) <= max(height - 1, 3)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "pulling abc123def456... 45% ▓▓▓▓▓▓▓▓░░░░░░░░░░░░ 2.9 GB/6.4 GB  14 MB/s  4m10s"),
        (60, "pulling abc123def456... 45% ▓▓▓▓░░░░░░░ 2.9 GB/6.4 GB  4m10s"),
        (39, "abc123def456 45% ▓▓▓░░░░░ 2.9 GB/6.4 GB"),
        (30, "abc123def456 45% 2.9 GB/6.4 GB"),
        (20, "abc123def456 45%"),
        (10, "abc123def…"),
    ],
)
def test_what_matters_least_goes_first_when_it_is_narrow(width: int, line: str) -> None:
    made = progress_line(DIGEST, 2_900_000_000, WHOLE, width, 14_000_000)
    assert columns_of(made) <= width
    assert made == line


@given(st.integers(0, 10**13), st.integers(1, 10**13), st.integers(1, 40))
def test_only_a_whole_file_is_full(done: int, total: int, cells: int) -> None:
    done = min(done, total)
    drawn = bar(done, total, cells)
    assert len(drawn) == cells
    assert ("░" not in drawn) == (done == total)
    assert (percent(done, total) == "100%") == (done == total)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (12, "12s"), (250, "4m10s"), (3720, "1h02m"), (90_000, "1d1h"), (10**9, "11574d1h")],
)
def test_times_left(seconds: float, text: str) -> None:
    assert time_left(seconds) == text
