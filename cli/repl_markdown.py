"""Markdown for a terminal while it streams: append-only, nothing is drawn twice. Pure.

Source: CommonMark 0.31, the blocks that models write: headings, fences, lists, quotes, rules. Tables and everything
else stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from llmlb.cli.repl_inline import CODE, Inline
from llmlb.cli.repl_wrap import Lines, visible

DIM, HEADING = "2", "1"
RULE_COLUMNS = 40
UNDECIDED_MAX = 100
"""Characters of a line that are held back at most, as those behind a fence; a line with more is text."""
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")
_MAYBE_FENCE = re.compile(r" {0,3}(`+|~+)")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+")
_RULE = re.compile(r" {0,3}([-*_])([ \t]*\1){2,}[ \t]*")
_MAYBE_RULE = re.compile(r" {0,3}([-*_])([ \t]*\1)*[ \t]*")
_BULLET = re.compile(r"([ \t]*)[-*+][ \t]+(?=\S)")
_NUMBER = re.compile(r"[ \t]*\d{1,9}[.)][ \t]+(?=\S)")
_QUOTE = re.compile(r" {0,3}(>[ \t]?)+")
_MAYBE_NUMBER = re.compile(r"[ \t]*\d{1,9}([.)][ \t]*)?")
_UNDECIDED = re.compile(r"[ \t]*(#{0,6}|[-*+]|(?:>[ \t]?)+)[ \t]*|[ \t]*(\*\*?|__?)| {0,3}(`{1,2}|~{1,2})")


class Markdown:
    """One answer. ``columns`` says how wide the terminal is at that moment."""

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._lines = Lines(columns())
        self._inline = Inline()
        self._start = ""
        """The beginning of a line whose block is not known yet."""
        self._mode: Callable[[str], None] | None = None
        """What takes the rest of the line; None at its beginning."""
        self._fence = ""
        """What ends the code that is open: its fence."""
        self._fence_indent = 0
        self._number = ""
        """The beginning of a line that may be an item with a number."""

    def feed(self, text: str) -> str:
        """What to write for this piece of the answer."""
        self._lines.columns = max(1, self._columns())
        for at, line in enumerate(visible(text).split("\n")):
            if at:
                self._end_line()
            if line:
                self._add(line)
        return self._lines.take()

    def close(self) -> str:
        """What was held back, and the end of its styles. Nothing may be fed after it."""
        if self._mode is None and self._start:
            self._begin(ended=True)
        self._inline_out(self._inline.end())
        return self._lines.take(last=True)

    def _add(self, text: str) -> None:
        if self._mode is not None:
            self._mode(text)
            return
        self._start += text
        self._begin(ended=False)

    def _end_line(self) -> None:
        if self._mode is None and not self._begin(ended=True):
            return  # the line was a fence or a rule, which ends itself
        self._inline_out(self._inline.end())
        self._mode = None
        self._lines.newline()

    def _begin(self, *, ended: bool) -> bool:
        """Decide what block the line is, when that is known. False: the whole line is dealt with."""
        line, self._start = self._start, ""
        if self._fence:
            return self._code_line(line, ended)
        if not ended and self._waits(line):
            self._start = line
            return True
        fence = _FENCE.fullmatch(line) if ended else None
        if fence is not None and not (fence[1][0] == "`" and "`" in fence[2]):
            self._fence = fence[1]
            self._fence_indent = len(line) - len(line.lstrip(" "))
            self._lines.raw(line + "\n", DIM)
            return False
        if ended and _RULE.fullmatch(line):
            self._lines.raw("─" * min(RULE_COLUMNS, self._lines.columns - 1) + "\n", DIM)
            return False
        self._mode = self._paragraph
        rest = self._prefix(line)
        if rest:
            self._mode(rest)
        return True

    def _waits(self, line: str) -> bool:
        """True while more of the line is needed to know what it is."""
        if len(line) > UNDECIDED_MAX:
            return False
        maybe = _MAYBE_FENCE.match(line)
        if maybe is not None and len(maybe[1]) >= 3:
            return not (maybe[1][0] == "`" and "`" in line[maybe.end() :])
        return bool(_UNDECIDED.fullmatch(line) or _MAYBE_RULE.fullmatch(line))

    def _prefix(self, line: str) -> str:
        """Write what a block begins with; the rest of the line."""
        if heading := _HEADING.match(line):
            self._inline.base = HEADING if len(heading[1]) > 1 else f"{HEADING};4"
            return line[heading.end() :]
        if bullet := _BULLET.match(line):
            indent = bullet[1].expandtabs(4)
            return self._item(indent + "• ", line[bullet.end() :])
        if quote := _QUOTE.match(line):
            bars = "│ " * quote[0].count(">")
            self._lines.raw(bars, DIM)
            self._lines.hang(bars, DIM)
            return line[quote.end() :]
        if line.lstrip().startswith("|"):
            self._mode = self._verbatim
        blanks = len(line) - len(line.lstrip(" "))
        if _MAYBE_NUMBER.match(line):
            self._number = line[:blanks]
            self._mode = self._numbered
        self._lines.raw(line[:blanks])
        return line[blanks:]

    def _numbered(self, text: str) -> None:
        """Written at once, for it stays as it is; what is not known yet is whether further rows are indented."""
        self._number += text
        if item := _NUMBER.match(self._number):
            self._lines.hang(" " * len(item[0]))
        if item or not _MAYBE_NUMBER.fullmatch(self._number):
            self._mode = self._paragraph
        self._paragraph(text)

    def _item(self, mark: str, rest: str) -> str:
        self._lines.raw(mark)
        self._lines.hang(" " * len(mark))
        return rest

    def _paragraph(self, text: str) -> None:
        self._inline_out(self._inline.feed(text))

    def _inline_out(self, parts: Iterable[tuple[str, str]]) -> None:
        for text, style in parts:
            self._lines.text(text, style)

    def _verbatim(self, text: str) -> None:
        self._lines.raw(text)

    def _code_line(self, line: str, ended: bool) -> bool:
        """A line inside a fence, or what closes it."""
        bare = line.strip(" ")
        may_close = not bare.strip(self._fence[0]) and len(line) - len(line.lstrip(" ")) <= 3
        if may_close and not ended:
            self._start = line
            return True
        if may_close and len(bare) >= len(self._fence):
            self._fence = ""
            self._lines.raw(line + "\n", DIM)
            return False
        indent = min(self._fence_indent, len(line) - len(line.lstrip(" ")))
        self._mode = self._code
        if line[indent:]:
            self._code(line[indent:])
        return True

    def _code(self, text: str) -> None:
        self._lines.raw(text, CODE)
