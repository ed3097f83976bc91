"""Where the frames of a pull go: a terminal whose last lines are redrawn, or plain lines for a file or a pipe.

Everything is on standard error. An output that breaks (its reader went away) is given up silently: the pull and its
exit code do not depend on it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO

from llmlb.cli.pull_view import FINAL, Frame, PullView, begun_files, label, plain_line
from llmlb.cli.render import columns_of

DEFAULT_SIZE = (80, 24)
PLAIN_EVERY_S = 5.0
PLAIN_STEP = 10
"""Per cent. A line for a file comes after both, or after ``PLAIN_SLOW_S`` if it moved at all."""
PLAIN_SLOW_S = 60.0
SAME_NOTE_S = 60.0
UNLIMITED = 1 << 20
_ASCII = str.maketrans({"▓": "#", "░": "-", "✓": "ok", "…": "~", **dict.fromkeys("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "*")})


class Output(Protocol):
    """One pull's output. ``trouble`` says why the task is not the newest state."""

    def show(self, task: Mapping[str, Any], trouble: str | None = None) -> None: ...

    def leave(self) -> None:
        """Nothing more of the pull comes. The last state stays on the screen."""
        ...

    def say(self, text: str) -> None:
        """A line of its own, after :meth:`leave`."""
        ...


class View(Protocol):
    """Makes the frames of what is shown. See :class:`PullView`."""

    def frame(self, task: Mapping[str, Any], width: int, height: int, trouble: str | None = None) -> Frame: ...


class Stream:
    """Standard error, in its own encoding. When it breaks, what is written to it from then on goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        try:
            "▓░✓⠋".encode(stream.encoding or "utf-8")
            self._ascii = False
        except (UnicodeError, LookupError):
            self._ascii = True

    def write(self, text: str) -> None:
        try:
            self._stream.write(text.translate(_ASCII) if self._ascii else text)
            self._stream.flush()
        except OSError:
            # Not closed: the interpreter flushes it at its end, and must not fail then.
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return DEFAULT_SIZE
        return columns or DEFAULT_SIZE[0], lines or DEFAULT_SIZE[1]


class Terminal:
    """Redraws the live lines in place: one write a frame, each line overwritten and then cleared to its end.

    Between frames the cursor stands at the beginning of the last live line, so that an echoed ``^C`` does not wrap.
    """

    def __init__(self, stream: TextIO, view: View | None = None) -> None:
        self._out = Stream(stream)
        self._view: View = view or PullView()
        self._frame = Frame([], [], [])
        self._drawn: list[str] = []
        self._columns = 0
        signal.signal(signal.SIGCONT, self._continued)

    def _continued(self, *_: object) -> None:
        """Back after Ctrl+Z: the shell has written below, so what was drawn is not ours to overwrite any more."""
        self._drawn = []

    def show(self, task: Mapping[str, Any], trouble: str | None = None) -> None:
        columns, lines = self._out.size()
        # The last column stays free: a cursor behind it is in another place in each terminal.
        self._frame = self._view.frame(task, max(1, columns - 1), lines, trouble)
        self._draw(self._frame.settled, [*self._frame.live, *self._frame.notes], columns)

    def _draw(self, settled: Sequence[str], live: Sequence[str], columns: int) -> None:
        # A terminal that became narrower has wrapped what was drawn into more rows; the cursor stayed with its line.
        rows = sum(max(1, -(-columns_of(line) // columns)) for line in self._drawn[:-1])
        back = f"\r\x1b[{rows}A" if rows else "\r"
        if columns != self._columns:
            back += "\x1b[J"  # else terminals remember which rows were wrapped, and join them when they grow again
        text = "".join(f"{line}\x1b[K\n" for line in settled) + "\n".join(f"{line}\x1b[K" for line in live)
        # 2026: shown at once by terminals that know it. 7: no wrapping, where such characters are two columns wide.
        self._out.write(f"\x1b[?2026h\x1b[?7l{back}{text}\x1b[J\r\x1b[?7h\x1b[?2026l")
        self._drawn, self._columns = list(live), columns

    def leave(self) -> None:
        if self._drawn:
            self._draw(self._frame.live, [], self._out.size()[0])

    def say(self, text: str) -> None:
        self._out.write(f"{text}\n")


class Plain:
    """Lines, none of them twice. ``clock`` in seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = Stream(stream)
        self._view = PullView(bars=False)
        self._clock = clock
        self._shown: dict[str, tuple[float, int]] = {}
        """By file: when, and how many per cent."""
        self._notes: dict[str, float] = {}

    def show(self, task: Mapping[str, Any], trouble: str | None = None) -> None:
        frame = self._view.frame(task, UNLIMITED, UNLIMITED, trouble)
        lines = list(frame.settled)
        if task["status"] not in FINAL:
            lines += [*self._moved(task), *self._noted(self._view.note(task, trouble))]
        if lines:
            self._out.write("".join(f"{line}\n" for line in lines))

    def _moved(self, task: Mapping[str, Any]) -> list[str]:
        begun, now, lines = begun_files(task), self._clock(), []
        for file in begun:
            share = file["done_bytes"] * 100 // file["total_bytes"]
            at, before = self._shown.get(file["name"], (-PLAIN_EVERY_S, -PLAIN_STEP))
            waited, moved = now - at, abs(share - before)
            if waited >= PLAIN_EVERY_S and (moved >= PLAIN_STEP or (moved and waited >= PLAIN_SLOW_S)):
                self._shown[file["name"]] = (now, share)
                speed = task.get("speed_bps", 0) if len(begun) == 1 else 0
                lines.append(plain_line(label(file), file["done_bytes"], file["total_bytes"], speed))
        return lines

    def _noted(self, note: str | None) -> list[str]:
        if note is None:
            return []
        kind, now = re.sub(r"\d+", "0", note), self._clock()  # "next try in 20 s" is "next try in 19 s"
        last = self._notes.get(kind)
        if last is not None and now - last < SAME_NOTE_S:
            return []
        self._notes[kind] = now
        return [note]

    def leave(self) -> None:
        pass

    def say(self, text: str) -> None:
        self._out.write(f"{text}\n")


def output_for(stream: TextIO) -> Terminal | Plain:
    """A terminal that can move its cursor gets bars; ``TERM=dumb`` and everything else gets lines."""
    if not stream.isatty():
        return Plain(stream)
    from rich.console import Console

    return Plain(stream) if Console(file=stream).is_dumb_terminal else Terminal(stream)
