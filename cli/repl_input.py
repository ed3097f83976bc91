"""What the user types: line editing, texts of several lines, history. prompt_toolkit is imported by nobody else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.defaults import create_output
from prompt_toolkit.output.vt100 import Vt100_Output

from llmlb.cli.repl_terminal import Interrupts, by_character

PROMPT, CONTINUATION = ">>> ", "... "
QUOTES = '"""'
PLACEHOLDER = "Send a message (/? for help)"
HISTORY_MOST_BYTES = 1024 * 1024
HISTORY_KEPT_BYTES = 512 * 1024


class KeptHistory(FileHistory):
    """A file of its user's own. What can't be written (a full disk, a folder that is gone) is only remembered."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            super().store_string(string)


def open_history(path: Path) -> History:
    """The history in ``path``: mode 0600, the oldest part cut off when it is large; in memory when it can't be kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(descriptor, "rb") as file:
            os.fchmod(descriptor, 0o600)
            large = os.fstat(descriptor).st_size > HISTORY_MOST_BYTES
            if large:
                file.seek(-HISTORY_KEPT_BYTES, os.SEEK_END)
                rest = file.read()
        if large:
            _replace(path, rest[rest.find(b"\n# ") + 1 :])
    except OSError:
        return InMemoryHistory()
    return KeptHistory(str(path))


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def unfinished(text: str) -> bool:
    """True for a text whose opening quotes have no closing ones yet."""
    begin = text.lstrip()
    return begin.startswith(QUOTES) and QUOTES not in begin[len(QUOTES) :]


def unquoted(text: str) -> str:
    """A message without the quotes that it may begin and end with."""
    begin = text.lstrip()
    if not begin.startswith(QUOTES):
        return text
    inside, _, after = begin[len(QUOTES) :].partition(QUOTES)
    return (inside.removeprefix("\n") + after).removesuffix("\n")


def _terminal() -> Output:
    """Standard output, without asking where the cursor is: that is for menus, and slow terminals show the answer."""
    output = create_output()
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False
    return output


class Reader:
    """The prompt. ``source`` and ``sink``: other ends than the terminal, for tests."""

    def __init__(
        self,
        history: History,
        *,
        styled: bool,
        interrupts: Interrupts | None = None,
        source: Input | None = None,
        sink: Output | None = None,
    ) -> None:
        self._styled = styled
        self._interrupts = interrupts or Interrupts()
        self._before = ""
        """What stood there when Ctrl+C was pressed."""
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            history=history,
            multiline=True,
            prompt_continuation=CONTINUATION,
            key_bindings=self._keys(),
            placeholder=self._placeholder,
            enable_suspend=True,
            # As many rows as there are, and no menu under them.
            reserve_space_for_menu=0,
            color_depth=None if styled else ColorDepth.DEPTH_1_BIT,
            input=source,
            output=sink or _terminal(),
        )

    def read(self) -> str:
        """One message. Raises EOFError for Ctrl+D, KeyboardInterrupt for Ctrl+C: see :attr:`was_empty`."""
        self._before = ""
        # Ctrl+C is a key here. Its signal is ours, so that none is lost while the prompt is set up and taken down.
        with self._interrupts.held(self._leave):
            text = unquoted(self._session.prompt(handle_sigint=False))
            stopped = self._stopped_at_once()
        if stopped or self._interrupts.pressed:
            self._before = text
            raise KeyboardInterrupt
        return text

    def _leave(self) -> None:
        """A signal came. While the prompt waits it is as the key."""
        app = self._session.app
        if app.is_running and not app.is_done and app.loop is not None:
            app.loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        app = self._session.app
        if app.is_running and not app.is_done:
            self._before = app.current_buffer.text
            app.exit(exception=KeyboardInterrupt, style="class:aborting")

    def _stopped_at_once(self) -> bool:
        """True when Ctrl+C came between the Enter key and the end of the raw mode, in which it is no signal.

        What else was typed there is kept for the next prompt.
        """
        terminal = self._session.app.input
        if not isinstance(terminal, Vt100Input):
            return False
        with by_character():
            keys = [*get_typeahead(terminal), *terminal.read_keys()]
        stops = [at for at, press in enumerate(keys) if press.key == Keys.ControlC]
        store_typeahead(terminal, keys[stops[-1] + 1 :] if stops else keys)
        return bool(stops)

    @property
    def was_empty(self) -> bool:
        """True when Ctrl+C was pressed where nothing was typed."""
        return not self._before

    def _placeholder(self) -> FormattedText:
        if get_app().is_done:  # what is left on the screen is what was typed
            return FormattedText()
        return FormattedText([("fg:ansibrightblack" if self._styled else "", PLACEHOLDER)])

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _enter(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if unfinished(buffer.text):
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _newline(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        @keys.add("<sigint>")
        def _interrupt(event: KeyPressEvent) -> None:
            self._before = event.current_buffer.text
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        @keys.add("c-g")
        def _editor(event: KeyPressEvent) -> None:
            event.current_buffer.open_in_editor()

        return keys
