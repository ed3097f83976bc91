"""``llmlb node run``: a conversation in the terminal, and the one-shot form for pipes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmlb.bus.errors import LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import OK

TEMPERATURE = 0.7
TOP_P = 0.9
"""Source: specs/cli-data-model.md, SessionSettings."""

HELP = """Available commands:
  /clear   forget the conversation
  /bye     leave
  /?       this help
Use \"\"\" to begin and end a text of several lines."""
QUOTES = '"""'


@dataclass(slots=True)
class Session:
    """One conversation. Only answers that came to their end become part of it."""

    gateway: GatewayClient
    model: str
    show_thinking: bool = False
    verbose: bool = False
    history: list[dict[str, str]] = field(default_factory=list)

    def clear(self) -> None:
        self.history.clear()

    def ask(self, text: str) -> None:
        """Send one turn and print the answer as it comes. Raises LlmlbError; the history is then as before."""
        turns = [*self.history, {"role": "user", "content": text}]
        body = {
            "model": self.model,
            "messages": turns,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
        }
        printer = _Printer(self.show_thinking)
        began = time.monotonic()
        usage: dict[str, Any] | None = None
        try:
            with self.gateway.stream("/v1/chat/completions", body) as events:
                for event in events:
                    usage = event.get("usage") or usage
                    for choice in event.get("choices", []):
                        printer.delta(choice.get("delta", {}))
        finally:
            printer.close()
        self.history = [*turns, {"role": "assistant", "content": printer.answer}]
        if self.verbose and usage is not None:
            _print_speed(usage, time.monotonic() - began, printer.first_at, began)


class _Printer:
    """Writes the pieces of one answer to standard output."""

    def __init__(self, show_thinking: bool) -> None:
        self.answer = ""
        self._line_open = False
        self.first_at: float | None = None
        self._show_thinking = show_thinking
        self._thinking = False

    def delta(self, delta: dict[str, Any]) -> None:
        if self.first_at is None and (delta.get("content") or delta.get("reasoning_content")):
            self.first_at = time.monotonic()
        if (thought := delta.get("reasoning_content")) and self._show_thinking:
            if not self._thinking:
                self._write("Thinking...\n")
                self._thinking = True
            self._write(f"\x1b[2m{thought}\x1b[0m" if sys.stdout.isatty() else thought)
        if text := delta.get("content"):
            self._end_thinking()
            self.answer += text
            self._write(text)

    def close(self) -> None:
        """End the line, however the answer ended; nothing is written where nothing was."""
        self._end_thinking()
        if self._line_open:
            self._write("\n")

    def _end_thinking(self) -> None:
        if self._thinking:
            self._write("\n...done thinking.\n\n")
            self._thinking = False

    def _write(self, text: str) -> None:
        self._line_open = not text.endswith("\n")
        sys.stdout.write(text)
        sys.stdout.flush()


def _print_speed(usage: dict[str, Any], total_s: float, first_at: float | None, began: float) -> None:
    answer = usage["completion_tokens"]
    first_s = (first_at or began) - began
    rate = answer / (total_s - first_s) if total_s > first_s else 0.0
    print(f"total duration:     {total_s:.2f}s", file=sys.stderr)
    print(f"first token:        {first_s:.2f}s", file=sys.stderr)
    print(f"prompt eval count:  {usage['prompt_tokens']} token(s)", file=sys.stderr)
    print(f"eval count:         {answer} token(s)", file=sys.stderr)
    print(f"eval rate:          {rate:.1f} tokens/s", file=sys.stderr)


def run_once(session: Session, text: str) -> int:
    """Answer one prompt; the exit code. Raises LlmlbError."""
    session.ask(text)
    return OK


def run_repl(session: Session) -> int:
    """Read, answer, until /bye or Ctrl+D; the exit code."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import HTML
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    kept = Settings.load().home / "history"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch(mode=0o600)  # prompts are the user's own
        history: FileHistory | InMemoryHistory = FileHistory(str(kept))
    except OSError:
        history = InMemoryHistory()
    reader: PromptSession[str] = PromptSession(history=history)
    placeholder = HTML("<ansigray>Send a message (/? for help)</ansigray>")

    def read(prompt: str) -> str:
        return reader.prompt(prompt, placeholder=placeholder if prompt == ">>> " else "")

    while True:
        try:
            text = read_message(read)
        except KeyboardInterrupt:
            print("Use Ctrl + d or /bye to exit.")
            continue
        except EOFError:
            return OK
        command = text.strip()
        if not command:
            continue
        if command == "/bye":
            return OK
        if is_command(command):
            _command(session, command)
            continue
        try:
            session.ask(text)
        except KeyboardInterrupt:
            print()
        except LlmlbError as error:
            print(f"Error: {error.message}", file=sys.stderr)
        print()


def is_command(text: str) -> bool:
    """True for ``/clear``, ``/set x``; False for a text of several lines and for one that begins with a path."""
    if not text.startswith("/") or "\n" in text:
        return False
    word = text.split()[0]
    return "/" not in word[1:] and "." not in word


def _command(session: Session, command: str) -> None:
    if command == "/clear":
        session.clear()
        print("Cleared the conversation.")
    elif command in ("/?", "/help"):
        print(HELP)
    else:
        print(f"Unknown command '{command}'. Type /? for help.")


def read_message(read: Callable[[str], str]) -> str:
    """One message; a line that begins with three quotes goes on until the closing ones. Raises EOFError."""
    line = read(">>> ")
    if not line.lstrip().startswith(QUOTES):
        return line
    text = line.lstrip()[len(QUOTES) :]
    while QUOTES not in text:
        text += "\n" + read("... ")
    before, _, after = text.partition(QUOTES)
    return before + after
