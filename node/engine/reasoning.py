"""Thinking apart from the answer: text between think markers. Pure.

Markers count at the beginning of an answer only; later in it they are text. A template that opens the block itself
(its prompt ends with the opening marker) makes the answer begin inside. A block that never closes is all thinking.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmlb.node.engine.streamer import possible_begin


@dataclass(frozen=True, slots=True)
class Markers:
    """One family: what opens the thinking, and what closes it."""

    open: str
    close: str


FAMILIES = (
    Markers("<think>", "</think>"),
    Markers("<thinking>", "</thinking>"),
    Markers("<reasoning>", "</reasoning>"),
    Markers("<thought>", "</thought>"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("[THINK]", "[/THINK]"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("◁think▷", "◁/think▷"),
    Markers("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    Markers("<|channel|>final<|message|>", ""),
)
"""Families by their models: Qwen, DeepSeek and most others · Claude-likes · EXAONE · Gemma fine-tunes · Seed-OSS ·
Magistral · Command A · Kimi-VL · gpt-oss (harmony: its final channel alone opens nothing)."""


def opened_by(prompt: str) -> Markers | None:
    """The family whose block the prompt opened and left open, if it ends with its marker."""
    tail = prompt[-64:].rstrip()
    return next((family for family in FAMILIES if family.close and tail.endswith(family.open)), None)


class ThinkSplitter:
    """Splits text into (thinking, answer) as it comes."""

    def __init__(self, opened: Markers | None = None) -> None:
        self._family = opened
        self._state = "thinking" if opened else "start"
        self._held = ""
        self._fresh = True

    @property
    def thinking(self) -> bool:
        """True while inside a block."""
        return self._state == "thinking"

    @property
    def undecided(self) -> bool:
        """True while it may still turn out that the answer begins with thinking."""
        return self._state == "start"

    def feed(self, text: str) -> tuple[str, str]:
        """More text: what of it is thinking, what is answer."""
        self._held += text
        reasoning = ""
        if self._state == "start" and not self._decide():
            return "", ""
        if self._state == "thinking":
            reasoning = self._think()
        if self._state == "answer":
            if self._fresh:
                self._held = self._held.lstrip("\n")
                self._fresh = not self._held
            out, self._held = self._held, ""
            return reasoning, out
        return reasoning, ""

    def finish(self) -> tuple[str, str]:
        """It is over: the rest."""
        rest, self._held = self._held, ""
        if self._state == "thinking":
            return rest.rstrip(), ""
        return "", rest

    def _decide(self) -> bool:
        """At the beginning: does thinking open? False: can't be said yet."""
        text = self._held.lstrip()
        for family in FAMILIES:
            if text.startswith(family.open):
                self._held = text[len(family.open) :]
                self._family = family
                self._state = "thinking" if family.close else "answer"
                return True
        if not text or any(family.open.startswith(text) for family in FAMILIES):
            return False
        self._state, self._fresh = "answer", False
        return True

    def _think(self) -> str:
        assert self._family is not None
        if self._fresh:
            self._held = self._held.lstrip()
            self._fresh = not self._held
        close = self._family.close
        at = self._held.find(close)
        if at >= 0:
            out, self._held = self._held[:at].rstrip(), self._held[at + len(close) :]
            self._state, self._fresh = "answer", True
            return out
        keep = possible_begin(self._held, (close,))
        keep = len(self._held[:keep].rstrip())  # whitespace before the closing marker is not part of the thinking
        out, self._held = self._held[:keep], self._held[keep:]
        return out
