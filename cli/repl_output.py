"""Where an answer goes: a terminal, with Markdown drawn as it streams, or a pipe, which gets it as it came."""

from __future__ import annotations

import os
from typing import TextIO

from llmlb.bus.settings import plain_terminal
from llmlb.cli.repl_markdown import DIM, Markdown
from llmlb.cli.repl_spinner import Spinner
from llmlb.cli.repl_wrap import RESET, Lines, visible

DEFAULT_COLUMNS = 80
BEGIN_THINKING, END_THINKING = "Thinking...", "...done thinking."


class Screen:
    """Standard output and what it can do, found out once."""

    def __init__(self, out: TextIO, *, plain: bool | None = None) -> None:
        self.out = out
        self.is_terminal = out.isatty()
        self.styled = self.is_terminal and not (plain_terminal() if plain is None else plain)

    def columns(self) -> int:
        try:
            return os.get_terminal_size(self.out.fileno()).columns or DEFAULT_COLUMNS
        except (OSError, ValueError):
            return DEFAULT_COLUMNS

    def write(self, text: str) -> None:
        if text:
            self.out.write(text)
            self.out.flush()

    def note(self, text: str) -> None:
        """A line from us, in a terminal, which is no part of an answer."""
        self.write(f"\x1b[{DIM}m{text}{RESET}\n" if self.styled else f"{text}\n")


class Printer:
    """One answer. Nothing is written where nothing was answered.

    ``answer`` and ``thinking`` hold what came so far. After :meth:`close`, which has to be called, the cursor is at the
    beginning of a line and the terminal as it was.
    """

    def __init__(self, screen: Screen, *, show_thinking: bool) -> None:
        self.answer = ""
        self.thinking = ""
        self.spinner = Spinner(screen.out, screen.columns())
        self._screen = screen
        self._show_thinking = show_thinking
        self._markdown = Markdown(screen.columns) if screen.styled else None
        self._thoughts: Lines | None = None
        self._in_thinking = False
        self._blanks = ""
        """Line ends of the thinking that wait for more of it."""
        self._line_open = False

    def start(self) -> None:
        """The answer is asked for: from now on the spinner may turn."""
        if self._screen.styled:
            self.spinner.start()

    def think(self, text: str) -> None:
        """More thinking."""
        self.thinking += text
        if not self._show_thinking:
            self.spinner.label = "Thinking..."
            return
        if not self._in_thinking:
            text = text.lstrip("\n")
            if not text:
                return
            self._write(f"{BEGIN_THINKING}\n", dim=True)
            self._in_thinking = True
            self._thoughts = Lines(self._screen.columns())
        text = self._blanks + text
        shown = text.rstrip("\n")
        self._blanks = text[len(shown) :]
        self._thought(shown)

    def say(self, text: str) -> None:
        """More of the answer."""
        first = not self.answer.strip("\n")
        self.answer += text
        if first and self._screen.is_terminal:
            text = text.lstrip("\n")
        if not text:
            return
        self._end_thinking()
        if self._markdown is not None:
            self._write(self._markdown.feed(text))
        else:
            self._write(visible(text) if self._screen.is_terminal else text)

    def close(self) -> None:
        """End the line, however the answer ended."""
        self.spinner.stop()
        self._end_thinking()
        if self._markdown is not None:
            self._write(self._markdown.close())
        if self._line_open:
            self._write("\n")

    def _thought(self, text: str) -> None:
        if self._thoughts is None or not self._screen.styled:
            self._write(visible(text) if self._screen.is_terminal else text)
            return
        self._thoughts.columns = self._screen.columns()
        for at, line in enumerate(visible(text).split("\n")):
            if at:
                self._thoughts.newline()
            self._thoughts.text(line, DIM)
        self._write(self._thoughts.take())

    def _end_thinking(self) -> None:
        if not self._in_thinking:
            return
        if self._thoughts is not None:
            self._write(self._thoughts.take(last=True))
        self._write("\n" if self._line_open else "")
        self._write(f"{END_THINKING}\n", dim=True)
        self._write("\n")
        self._in_thinking = False

    def _write(self, text: str, *, dim: bool = False) -> None:
        if not text:
            return
        self.spinner.stop()
        # What a terminal is told at the end of its styles is no text.
        bare = text.removesuffix(RESET)
        if bare:
            self._line_open = not bare.endswith("\n")
        self._screen.write(f"\x1b[{DIM}m{text[:-1]}{RESET}\n" if dim and self._screen.styled else text)
