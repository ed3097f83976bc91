"""One question to a gateway, and its answer as it comes."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from llmlb.bus.errors import ContextOverflow, LlmlbError, MessageTooLarge
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.render import size
from llmlb.cli.repl_images import Prompt, room
from llmlb.cli.repl_output import Printer, Screen
from llmlb.cli.repl_session import Message, Session, body_bytes
from llmlb.cli.repl_terminal import Interrupts

STATE_TIMEOUT_S = 1.0
"""For what is only asked to be shown; the answer does not wait longer for it."""
LOADING = "Loading the model..."
DROPPED = "The conversation is longer than the model's context: its oldest turns are no longer sent."


@dataclass(slots=True)
class Times:
    """Of one answer, on the clock of this process, in seconds."""

    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float = 0.0


class Talk:
    """A session with a gateway. ``names``: what the model is called there."""

    def __init__(
        self, gateway: GatewayClient, settings: Settings, session: Session, screen: Screen, *, verbose: bool = False
    ) -> None:
        self.session = session
        self.screen = screen
        self.interrupts = Interrupts()
        self._gateway = gateway
        self._settings = settings
        self._verbose = verbose
        self._beside: GatewayClient | None = None
        """A second connection, for what is asked while an answer is being waited for."""
        self.canonical = session.model_name

    def ask(self, prompt: Prompt) -> None:
        """Send one turn and print the answer as it comes.

        Raises LlmlbError; the history is then as before, less what had to be dropped. Ctrl+C: what was shown of the
        answer is part of the conversation.
        """
        question = Message("user", tuple(prompt.parts))
        most = room(self._settings.max_body_bytes)
        if body_bytes(question) > most:
            raise MessageTooLarge(f"the message is too large: {size(most)} is the most (LLMLB_MAX_BODY)")
        self._dropped(self.session.fit(question, most))
        while True:
            printer = Printer(self.screen, show_thinking=self.session.settings.show_thinking)
            try:
                self._answer(question, printer)
                return
            except (ContextOverflow, MessageTooLarge):
                dropped = 0 if printer.answer or printer.thinking else self.session.drop_oldest()
                if not dropped:
                    raise
                self._dropped(dropped)

    def learn_context(self) -> None:
        """How long the context of the loaded model is. What fails here is not worth a word."""
        for row in self._loaded():
            if row.get("name") == self.canonical and row.get("context_length"):
                self.session.context_length = int(row["context_length"])

    def close(self) -> None:
        self._gateway.close()
        if self._beside is not None:
            self._beside.close()

    def _answer(self, question: Message, printer: Printer) -> None:
        times = Times()
        usage: dict[str, Any] | None = None
        reason = None
        try:
            self.interrupts.check()
            printer.start()
            with self._gateway.stream(
                "/v1/chat/completions", self.session.request(question), _Waiting(self, printer)
            ) as events:
                for event in events:
                    self.interrupts.check()
                    usage = event.get("usage") or usage
                    for choice in event.get("choices", []):
                        reason = choice.get("finish_reason") or reason
                        self._delta(choice.get("delta") or {}, printer, times)
        except KeyboardInterrupt:
            if printer.answer.strip():
                self.session.add(question, self._message(printer), None)
            raise
        finally:
            printer.close()
        times.ended = time.monotonic()
        self.session.add(question, self._message(printer), usage)
        if reason == "length" and self.session.settings.max_tokens is None:
            self._note("The answer stopped here: the model's context is full.")
        if self._verbose and usage is not None:
            print(speed(usage, times), file=sys.stderr)

    @staticmethod
    def _message(printer: Printer) -> Message:
        return Message("assistant", (printer.answer,), thinking=printer.thinking or None)

    @staticmethod
    def _delta(delta: dict[str, Any], printer: Printer, times: Times) -> None:
        thought, text = delta.get("reasoning_content"), delta.get("content")
        if times.first is None and (thought or text):
            times.first = time.monotonic()
        if thought:
            printer.think(thought)
        if text:
            printer.say(text)

    def _dropped(self, turns: int) -> None:
        """Said once, until the conversation is cleared: from then on it happens all the time."""
        if turns and not self.session.dropped:
            self.session.dropped = True
            self._note(DROPPED)

    def _note(self, text: str) -> None:
        if self.screen.is_terminal:
            self.screen.note(text)
        else:
            print(text, file=sys.stderr)

    def _loaded(self) -> list[dict[str, Any]]:
        if self._beside is None:
            self._beside = GatewayClient(self._settings, "node")
        with contextlib.suppress(LlmlbError):
            found = self._beside.get("/v0/ps", has="models", timeout_s=STATE_TIMEOUT_S)["models"]
            return [row for row in found if isinstance(row, dict)]
        return []

    def loading(self) -> str:
        """What is known of the model that is being loaded."""
        for row in self._loaded():
            if row.get("name") == self.canonical and row.get("state") == "loading":
                percent = int(row.get("percent") or 0)
                return f"{LOADING} {percent}%" if percent else LOADING
        return LOADING


@dataclass(slots=True)
class _Waiting:
    """Puts what a gateway says in comments while no token comes behind the spinner."""

    talk: Talk
    printer: Printer

    def __call__(self, comment: str) -> None:
        self.talk.interrupts.check()
        phase, _, place = comment.partition(" x-llmlb-queue-position=")
        if phase == "loading":
            self.printer.spinner.label = self.talk.loading()
        elif phase == "queued":
            self.printer.spinner.label = f"Waiting, {place.partition(' x-')[0]}" if place else "Waiting..."
        elif phase == "prefill":
            self.printer.spinner.label = "Reading the prompt..."


def speed(usage: dict[str, Any], times: Times) -> str:
    """What ``--verbose`` says; names and order as ollama has them, as far as a client can know."""
    first = (times.first or times.ended) - times.began
    rest = times.ended - times.began - first
    prompt, answer = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    lines = [
        ("total duration", f"{times.ended - times.began:.2f}s"),
        ("first token", f"{first:.2f}s"),
        ("prompt eval count", f"{prompt} token(s)" + (f", {cached} of them cached" if cached else "")),
        ("prompt eval rate", f"{(prompt - cached) / first if first > 0 else 0.0:.1f} tokens/s"),
        ("eval count", f"{answer} token(s)"),
        ("eval duration", f"{rest:.2f}s"),
        # The first token is there when the time begins.
        ("eval rate", f"{(answer - 1) / rest if rest > 0 and answer > 1 else 0.0:.1f} tokens/s"),
    ]
    return "\n".join(f"{name + ':':<20}{value}" for name, value in lines)
