"""Text into the lines of a terminal, append-only: what is written is never moved or overwritten. Pure.

A word is written as it comes, unless it is so near to the edge that it may not fit: then it waits for its end, and goes
to the next line whole. So nothing flickers, and text that is copied out of the terminal has no broken words.
"""

from __future__ import annotations

from unicodedata import category, east_asian_width

RESET = "\x1b[0m"
ROOM = 16
"""Columns that have to be free to the right of a word that is written before its end is known."""
NO_BEGIN = frozenset("、。，．！？：；）」』】〉》ー…々")  # noqa: RUF001
"""Wide characters that do not begin a line. Source: JIS X 4051, the most frequent of them."""


def width_of(char: str) -> int:
    """Columns of one character: 0 for what joins the one before it, 2 for wide ones."""
    if char < "\x7f":
        return 1
    if category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def visible(text: str) -> str:
    """Without what could command the terminal: a model's answer may hold escape sequences. Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or category(char) != "Cc" else "" if char == "\r" else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


class Lines:
    """Words and blanks in, text for the terminal out: :meth:`take` gives what there is to be written.

    ``columns`` is how wide the terminal is now; it may change. ``styled`` False: no escape sequences at all.
    """

    def __init__(self, columns: int, *, styled: bool = True) -> None:
        self.columns = columns
        self._styled = styled
        self._out: list[str] = []
        self._style = ""
        """What the terminal is set to."""
        self._column = 0
        self._gap = 0
        """Blanks that are written with the next word, or never when a line ends there."""
        self._word: list[tuple[str, str]] = []
        """Style and text of the part of the current word that is not written."""
        self._word_width = 0
        self._begun = False
        """True when the beginning of the current word is written."""
        self._hang = ("", "")
        """Text and style of what lines begin with when they go on from the line before."""

    def hang(self, text: str, style: str = "") -> None:
        """Until the line ends, what its further rows begin with; not more than half the width."""
        self._hang = (text[: self.columns // 2], style)

    @property
    def _limit(self) -> int:
        """The last column stays free: a cursor behind it is in another place in each terminal."""
        return max(4, self.columns - 1)

    def text(self, text: str, style: str = "") -> None:
        """Words and blanks of one line; ``style`` is an SGR parameter, ``1`` for bold."""
        plain: list[str] = []
        for char in text:
            if char in " \t":
                self._add("".join(plain), style)
                plain.clear()
                self._end_word()
                self._gap += 1 if char == " " else 4
            elif east_asian_width(char) in "WF" and char >= "\u1100":
                self._add("".join(plain), style)
                plain.clear()
                if char not in NO_BEGIN:
                    self._end_word()
                self._add(char, style)
            else:
                plain.append(char)
        self._add("".join(plain), style)

    def raw(self, text: str, style: str = "") -> None:
        """Written as it is: no wrapping, blanks kept. It may hold line ends."""
        self._end_word()
        self._write(" " * self._gap, "")
        self._gap = 0
        first, *others = text.split("\n")
        self._write(first, style)
        for line in others:
            self._set("")
            self._out.append("\n")
            self._column = 0
            self._write(line, style)

    def newline(self) -> None:
        """The line ends here; blanks at its end are dropped."""
        self._end_word()
        self._gap = 0
        self._set("")
        self._out.append("\n")
        self._column, self._hang = 0, ("", "")

    def take(self, *, last: bool = False) -> str:
        """What is to be written now. ``last``: nothing comes after it, so that nothing may be held back."""
        if last:
            self._end_word()
            self._gap = 0
            self._set("")
        elif self._word:
            self._break_line()
            if self._begun or self._near() + min(ROOM, self._limit // 3) <= self._limit or not self._can_break():
                self._begin_word()
        out, self._out = "".join(self._out), []
        return out

    def _near(self) -> int:
        """The column where the current word ends as far as it is known."""
        return self._column + self._gap + self._word_width

    def _add(self, text: str, style: str) -> None:
        if text:
            self._word.append((style, text))
            self._word_width += sum(map(width_of, text))

    def _begin_word(self) -> None:
        """Write what there is of the word; more of it may come."""
        if self._word:
            self._write(" " * self._gap, self._style if self._style == self._word[0][0] else "")
            self._gap = 0
        for style, text in self._word:
            self._write(text, style)
        self._word, self._word_width, self._begun = [], 0, True

    def _end_word(self) -> None:
        if self._word:
            self._break_line()
            self._begin_word()
        self._begun = False

    def _can_break(self) -> bool:
        """False where the line has nothing yet, or only what it begins with."""
        return self._column > len(self._hang[0])

    def _break_line(self) -> None:
        """Go to the next line if the current word does not fit any more and nothing of it is written."""
        if self._begun or self._near() <= self._limit or not self._can_break():
            return
        self._set("")
        self._out.append("\n")
        self._column = self._gap = 0
        self._write(*self._hang)

    def _write(self, text: str, style: str) -> None:
        if not text:
            return
        self._set(style)
        self._out.append(text)
        # What does not fit into a line (an address) is left to the terminal, which breaks it and copies it whole.
        width = self._column + sum(map(width_of, text))
        self._column = width if width <= self.columns else width % self.columns or self.columns

    def _set(self, style: str) -> None:
        if style == self._style or not self._styled:
            return
        self._out.append((RESET if self._style else "") + (f"\x1b[{style}m" if style else ""))
        self._style = style
