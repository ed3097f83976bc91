"""``--watch``: the same look again and again: in a terminal refreshed in place, elsewhere one block after the other.

The cursor stays visible and no other screen is opened: whatever ends the process, the terminal is as before, with the
last look still on it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from llmlb.bus.errors import InvalidRequest, LlmlbError
from llmlb.bus.settings import parse_duration
from llmlb.cli.exit_codes import CONNECTION, exit_code
from llmlb.cli.render import clipped, columns_of, printable

DEFAULT_S = 2.0
LEAST_S = 0.1


def seconds_of(interval: str | None) -> float:
    """The time between two looks. Raises InvalidRequest."""
    if interval is None:
        return DEFAULT_S
    try:
        seconds = parse_duration(interval)
    except ValueError as error:
        raise InvalidRequest(f"--interval: {error}") from error
    if seconds < LEAST_S:
        raise InvalidRequest(f"--interval: at least {LEAST_S:.1f} s")
    return seconds


def watch(
    look: Callable[[], Any],
    text: Callable[[Any], str],
    *,
    as_json: bool,
    interval: str | None,
    sleep: Callable[[float], None] = time.sleep,
) -> NoReturn:
    """Until Ctrl+C. With ``as_json`` each look is one line. Raises what the first look raises; later, a server that is
    away is said and waited for, and anything else it refuses is raised."""
    seconds = seconds_of(interval)
    out: Painter | Blocks = Painter(sys.stdout) if not as_json and _moves(sys.stdout) else Blocks(sys.stdout)
    found, trouble = look(), ""
    while True:
        if as_json:
            out.show(json.dumps(found, ensure_ascii=False) if not trouble else "", trouble)
        else:
            out.show(text(found), trouble)
        sleep(seconds)
        try:
            found, trouble = look(), ""
        except LlmlbError as error:
            if exit_code(error) != CONNECTION:
                raise
            trouble = f"trying again: {error.message.partition('. ')[0]}"


def _moves(stream: TextIO) -> bool:
    """Whether it is a terminal that can move its cursor."""
    if not stream.isatty():
        return False
    from rich.console import Console

    return not Console(file=stream).is_dumb_terminal


class Painter:
    """A terminal that is overwritten: what is longer than the window is cut, so that nothing scrolls away."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn: list[str] = []
        self._columns = 0

    def show(self, text: str, trouble: str) -> None:
        columns, lines = self._size()
        rows = [clipped(row, columns - 1) for row in text.split("\n")]
        if trouble:
            rows.append(clipped(printable(trouble), columns - 1))
        if len(rows) > lines - 1:
            more = len(rows) - (lines - 2)
            rows = [*rows[: lines - 2], f"and {more} more rows"]
        # A terminal that became narrower has wrapped what was drawn into more rows.
        up = sum(max(1, -(-columns_of(row) // columns)) for row in self._drawn)
        back = f"\x1b[{up}A" if up else ""
        if columns != self._columns:
            back += "\x1b[J"  # what was wrapped stays in pieces otherwise
        # 2026: shown at once by terminals that know it. The cursor ends below, so that ^C stands in a line of its own.
        self._stream.write(f"\x1b[?2026h\r{back}" + "".join(f"{row}\x1b[K\n" for row in rows) + "\x1b[J\x1b[?2026l")
        self._stream.flush()
        self._drawn, self._columns = rows, columns

    def _size(self) -> tuple[int, int]:
        try:
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return 80, 24
        return max(columns, 10) if columns else 80, max(lines, 4) if lines else 24


class Blocks:
    """A file or a pipe: each look under the one before, an empty line between; trouble goes to standard error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = False
        self._trouble = ""

    def show(self, text: str, trouble: str) -> None:
        if trouble:
            if trouble != self._trouble:
                print(trouble, file=sys.stderr)
        elif text:
            apart = "\n" if self._begun and "\n" in text else ""
            self._stream.write(f"{apart}{text}\n")
            self._stream.flush()
            self._begun = True
        self._trouble = trouble
