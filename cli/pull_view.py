"""What a pull looks like: from the state of its task to lines. Pure, but for what it remembers of settled lines.

Lines and bar as in specs/cli-contract.md and cli-data-model.md; speed and time left stand behind them while it runs.
A line is *settled* when it will not change any more: it is printed once and scrolls away. The others are *live*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmlb.cli.render import clipped, columns_of, printable, size

BAR_CELLS = 20
MIN_BAR_CELLS = 5
DIGEST_CHARS = 12
LABEL_COLUMNS = 28
"""Of a file without a digest: it is called by its name."""
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FINAL = frozenset({"completed", "failed", "cancelled"})
PATIENT_UPDATES = 4
"""A task that has not begun after so many looks at it says that it waits."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What to print now: lines for good, and two kinds that the next frame replaces."""

    settled: Sequence[str]
    live: Sequence[str]
    notes: Sequence[str]


def time_left(seconds: float) -> str:
    """``12s``, ``4m10s``, ``1h02m``, ``2d3h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600}h"


def bar(done: int, total: int, cells: int = BAR_CELLS) -> str:
    """The last cell fills up only when everything is there, as in the contract: 45 % are 8 cells of 20."""
    filled = cells if done >= total else done * (cells - 1) // total
    return "▓" * filled + "░" * (cells - filled)


def percent(done: int, total: int) -> str:
    """Never 100% before everything is there."""
    return "100%" if done >= total else f"{done * 100 // total}%"


def label(file: Mapping[str, Any]) -> str:
    """The beginning of its sha256; the name of a file that the hub lists no digest of."""
    digest = file.get("digest")
    name = str(file["name"]).rsplit("/", 1)[-1]
    return printable(digest[:DIGEST_CHARS]) if digest else clipped(printable(name), LABEL_COLUMNS)


def progress_line(name: str, done: int, total: int, width: int, speed_bps: int = 0) -> str:
    """One bar, with as much beside it as ``width`` columns take. The whole of it needs 62, and 80 with the speed."""
    share = percent(done, total)
    amount = size(total) if done >= total else f"{size(done)}/{size(total)}"
    speed = f"  {size(speed_bps)}/s" if speed_bps and done < total else ""
    left = f"  {time_left((total - done) / speed_bps)}" if speed else ""
    head = f"pulling {name}... {share}"
    short = f"{name} {share}"
    for start, min_cells, tail in (
        (head, 10, f"{amount}{speed}{left}"),
        (head, 10, f"{amount}{left}"),
        (head, 8, amount),
        (short, MIN_BAR_CELLS, f"{amount}{left}"),
        (short, MIN_BAR_CELLS, amount),
    ):
        cells = min(BAR_CELLS, width - columns_of(start) - columns_of(tail) - 2)
        if cells >= min_cells:
            return f"{start} {bar(done, total, cells)} {tail}"
    for text in (f"{short} {amount}", short):
        if columns_of(text) <= width:
            return text
    return clipped(short, width)


def plain_line(name: str, done: int, total: int, speed_bps: int = 0) -> str:
    """The same without a bar, for a file or a pipe."""
    if done >= total:
        return f"pulling {name}... 100% {size(total)}"
    behind = f"  {size(speed_bps)}/s  {time_left((total - done) / speed_bps)}" if speed_bps else ""
    return f"pulling {name}... {percent(done, total)} {size(done)}/{size(total)}{behind}"


def begun_files(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Files that are on their way."""
    return [file for file in task["files"] if 0 < file["done_bytes"] < file["total_bytes"]]


class PullView:
    """The frames of one pull. ``bars`` False: the lines of a file or a pipe, of any width."""

    def __init__(self, *, bars: bool = True) -> None:
        self._bars = bars
        self._updates = 0
        self._said: set[str] = set()
        self._files: set[tuple[str, str | None]] = set()
        """Files whose last line is out."""

    def frame(self, task: Mapping[str, Any], width: int, height: int, trouble: str | None = None) -> Frame:
        """``width`` and ``height`` of the terminal, in columns and lines; ``trouble`` takes the place of the note."""
        self._updates += 1
        settled = self._settle(task, width)
        if task["status"] in FINAL:
            return Frame(settled, [], [])
        note = self.note(task, trouble)
        notes = [clipped(f"  {note}", width)] if note else []
        return Frame(settled, self._live(task, width, max(1, height - 2 - len(notes))), notes)

    def note(self, task: Mapping[str, Any], trouble: str | None = None) -> str | None:
        """What it waits for, or why it began anew; None when there is nothing to say."""
        waits = task["phase"] == "waiting" and self._updates > PATIENT_UPDATES
        note = trouble or task.get("note") or ("waiting for its turn: the node has other pulls" if waits else None)
        return printable(note) if note else None

    def _settle(self, task: Mapping[str, Any], width: int) -> list[str]:
        lines: list[str] = []
        whole = task["status"] == "completed"
        if whole or task["files"]:
            lines += self._once("pulling manifest ✓")
        for file in task["files"]:
            key, total = (file["name"], file.get("digest")), file["total_bytes"]
            if not whole and file["done_bytes"] < total:
                self._files.discard(key)  # it began anew
            elif key not in self._files:
                self._files.add(key)
                lines.append(self._file_line(file, total, width))
        if whole or (task["phase"] == "writing" and task["status"] not in FINAL):
            lines += self._once("verifying sha256 digest ✓")
        if whole:
            lines += [*self._once("writing manifest ✓"), *self._once("success")]
        return lines

    def _once(self, line: str) -> list[str]:
        if line in self._said:
            return []
        self._said.add(line)
        return [line]

    def _file_line(self, file: Mapping[str, Any], done: int, width: int, speed_bps: int = 0) -> str:
        if not self._bars:
            return plain_line(label(file), done, file["total_bytes"], speed_bps)
        return progress_line(label(file), done, file["total_bytes"], width, speed_bps)

    def _live(self, task: Mapping[str, Any], width: int, height: int) -> list[str]:
        turn = SPINNER[self._updates % len(SPINNER)]
        if not task["files"]:
            return [clipped(f"pulling manifest {turn}", width)]
        lines = self._file_lines(task, width)
        last: list[str] = []
        if task["phase"] == "verifying":
            done = sum(file.get("verified_bytes", 0) for file in task["files"])
            last = [clipped(f"verifying sha256 digest {percent(done, task['total_bytes'] or 1)} {turn}", width)]
        elif task["phase"] == "writing":
            last = [clipped(f"writing manifest {turn}", width)]
        elif len(task["files"]) > 1 and lines:
            last = [self._total_line(task, width)]
        room = max(1, height - len(last))
        if len(lines) > room:
            more = len(lines) - (room - 1)
            lines = [*lines[: room - 1], clipped(f"and {more} more files", width)]
        return [*lines, *last]

    def _file_lines(self, task: Mapping[str, Any], width: int) -> list[str]:
        """A line for each file that is not whole; those that have begun come first.

        The task's speed stands behind a file that is alone on its way, and behind the total otherwise.
        """
        open_files = [file for file in task["files"] if file["done_bytes"] < file["total_bytes"]]
        begun = begun_files(task)
        speed = task.get("speed_bps", 0) if len(begun) == 1 else 0
        waiting = [file for file in open_files if not file["done_bytes"]]
        return [self._file_line(file, file["done_bytes"], width, speed) for file in begun] + [
            self._file_line(file, 0, width) for file in waiting
        ]

    def _total_line(self, task: Mapping[str, Any], width: int) -> str:
        done, total = task["downloaded_bytes"], task["total_bytes"]
        text = f"total {percent(done, total)} {size(done)}/{size(total)}"
        for more in (f"{size(task['speed_bps'])}/s" if task.get("speed_bps") else "", _eta(task)):
            if more and columns_of(f"{text}  {more}") <= width:
                text = f"{text}  {more}"
        return clipped(text, width)


def _eta(task: Mapping[str, Any]) -> str:
    return "" if task.get("eta_s") is None else time_left(task["eta_s"])
