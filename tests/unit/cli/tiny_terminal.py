"""As much of a terminal as the redrawing of a pull needs: rows of text, a cursor, and what moves it."""

from __future__ import annotations

import io
import os
import re

from llmlb.cli.render import columns_of

_CONTROL = re.compile(r"\x1b\[(\??)(\d*)([A-Za-z])|[\r\n]")


class TinyTerminal(io.StringIO):
    """A stream that draws. ``rows`` is everything ever printed, the scrolled part too; nothing wraps."""

    encoding = "utf-8"

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        super().__init__()
        self.size = os.terminal_size((columns, lines))
        self.rows: list[str] = [""]
        self.at = 0
        self.column = 0
        self.writes = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes += 1
        place = 0
        for control in _CONTROL.finditer(text):
            self._put(text[place : control.start()])
            self._control(control)
            place = control.end()
        self._put(text[place:])
        return len(text)

    def _put(self, text: str) -> None:
        assert text.isprintable()
        row = self.rows[self.at].ljust(self.column)
        self.rows[self.at] = row[: self.column] + text + row[self.column + len(text) :]
        self.column += len(text)
        assert not text or columns_of(self.rows[self.at]) < self.size.columns, self.rows[self.at]

    def _control(self, control: re.Match[str]) -> None:
        private, count, kind = control[1], int(control[2] or 1), control[3]
        if control[0] == "\r":
            self.column = 0
        elif control[0] == "\n":
            self.at, self.column = self.at + 1, 0
            self.rows += [""] * (self.at + 1 - len(self.rows))
        elif private:
            assert control[2] in ("7", "2026")
        elif kind == "A":
            self.at -= count
            assert self.at >= 0
        elif kind in "JK":
            self.rows[self.at] = self.rows[self.at][: self.column]
            if kind == "J":
                del self.rows[self.at + 1 :]
        else:
            raise AssertionError(f"unknown control {control[0]!r}")

    def wrap_to(self, columns: int) -> None:
        """Become narrower, as terminals do that wrap anew: the cursor stays with its character (column 0)."""
        made: list[str] = []
        for number, row in enumerate(self.rows):
            if number == self.at:
                at = len(made)
            made += [row[i : i + columns] for i in range(0, len(row), columns)] or [""]
        self.rows, self.at = made, at
        self.size = os.terminal_size((columns, self.size.lines))

    @property
    def text(self) -> list[str]:
        return [row.rstrip() for row in self.rows if row.strip()]
