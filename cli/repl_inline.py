"""Bold, italic and code inside a line of Markdown, as it streams. Pure.

What may open a span waits for its end for some characters, so that ``2 * 3`` and ``*.py`` stay what they are; what has
no end is text, its markers too. Source: CommonMark 0.31, "Inlines", without links, HTML and what runs over line ends;
``__init__`` is a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

HELD = 60
"""Characters that are waited for the end of a span. Bold ones that are longer are believed without it."""
BOLD, ITALIC, BOTH, CODE = "1", "3", "1;3", "36"
_STYLES = {1: ITALIC, 2: BOLD, 3: BOTH}
_SPECIAL = re.compile(r"[`*_\\]")
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


class Inline:
    """Pieces of lines in, (text, style) out. ``base`` is the style that the whole line has, as a heading."""

    def __init__(self) -> None:
        self.base = ""
        self._held = ""
        self._open: list[str] = []
        self._before = " "
        """The character in front of what is held."""

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """More of the line."""
        self._held += text
        yield from self._run(ended=False)

    def end(self) -> Iterator[tuple[str, str]]:
        """The line ends."""
        yield from self._run(ended=True)
        self._open.clear()
        self._before = " "
        self.base = ""

    def _style(self, more: str = "") -> str:
        parts = [self.base, *(_STYLES[len(marker)] for marker in self._open), more]
        return ";".join(part for part in parts if part)

    def _out(self, text: str, more: str = "") -> tuple[str, str]:
        self._before = text[-1:] or self._before
        return text, self._style(more)

    def _cut(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _run(self, *, ended: bool) -> Iterator[tuple[str, str]]:
        while self._held:
            special = _SPECIAL.search(self._held)
            if special is None or special.start():
                yield self._out(self._cut(special.start() if special else len(self._held)))
                continue
            part = self._special(ended)
            if part is None:
                return
            yield part

    def _special(self, ended: bool) -> tuple[str, str] | None:
        """What is held begins with a special character: the next part; None to wait for more."""
        char = self._held[0]
        if char == "\\":
            if len(self._held) < 2:
                return self._out(self._cut(1)) if ended else None
            if self._held[1] in _PUNCTUATION:
                self._cut(1)
                return self._out(self._cut(1))
            return self._out(self._cut(1))
        run = len(self._held) - len(self._held.lstrip(char))
        if self._before == char or run > (HELD if char == "`" else 3):
            return self._out(self._cut(run))
        if run == len(self._held) and not ended:
            return None
        return self._code(run, ended) if char == "`" else self._marker(char * run, ended)

    def _code(self, run: int, ended: bool) -> tuple[str, str] | None:
        part, whole = self._looked_at(run, ended)
        end = re.compile(rf"(?<!`)`{{{run}}}(?!`)").search(part, run)
        if end is not None and (whole or end.end() < len(part)):
            code = self._cut(end.end())[run:-run]
            return self._out(code, CODE)
        if ended or len(self._held) > HELD + run:
            return self._out(self._cut(run))
        return None

    def _marker(self, marker: str, ended: bool) -> tuple[str, str] | None:
        run = len(marker)
        after = self._held[run : run + 1]
        closes = not self._before.isspace() and not (marker[0] == "_" and after.isalnum())
        if closes:
            for at in range(len(self._open) - 1, -1, -1):
                if marker.startswith(self._open[at]):
                    self._cut(len(self._open[at]))
                    del self._open[at:]
                    return "", ""
        if marker == "__" or not after or after.isspace() or self._before.isalnum() or marker in self._open:
            return self._out(self._cut(run))
        found = self._closed(marker, ended)
        long = len(self._held) > HELD + run
        if not (found or long or ended):
            return None
        self._cut(run)
        if not found and (ended or run == 1):
            return self._out(marker)
        self._open.append(marker)
        self._before = " "
        return "", ""

    def _looked_at(self, run: int, ended: bool) -> tuple[str, bool]:
        """Where the end of a span is searched, however much came at once; and whether nothing comes behind it."""
        part = self._held[: HELD + run + 1]
        return part, ended and len(part) == len(self._held)

    def _closed(self, marker: str, ended: bool) -> bool:
        """True when a run that closes it is in what is held: behind something that is no blank, and long enough.

        A run at the end may become longer, so it counts only when the line ends there.
        """
        part, whole = self._looked_at(len(marker), ended)
        char = re.escape(marker[0])
        for run in re.finditer(rf"(?<=[^\s\\{char}])({char}+)(\w?)", part[len(marker) :]):
            known = whole or len(marker) + run.end(1) < len(part)
            if known and len(run[1]) in (len(marker), 3) and not (marker[0] == "_" and run[2]):
                return True
        return False
