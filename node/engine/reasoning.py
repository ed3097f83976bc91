"""Thinking apart from the answer: text between think markers. Pure.

Markers count at the beginning of an answer only; later in it they are text. A template that opens the block itself
(its prompt ends with the opening marker) makes the answer begin inside. A block that never closes is all thinking.
"""

from __future__ import annotations

import re
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
)
"""Families by their models: Qwen, DeepSeek and most others · Claude-likes · EXAONE · Gemma fine-tunes · Seed-OSS ·
Magistral · Command A · Kimi-VL · gpt-oss (read by :class:`Harmony`)."""


def opened_by(prompt: str) -> Markers | None:
    """The family whose block the prompt opened and left open, if it ends with its marker."""
    tail = prompt[-64:].rstrip()
    return next((family for family in FAMILIES if tail.endswith(family.open)), None)


HARMONY = next(family for family in FAMILIES if family.open == "<|channel|>analysis<|message|>")
_HARMONY_BEGINS = ("<|channel|>", "<|start|>assistant", "to=functions.")
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w*)")
_CALLED = re.compile(r"to=functions\.([A-Za-z0-9_.-]+)")


class ThinkSplitter:
    """Splits text into (thinking, answer) as it comes. What comes out does not depend on the pieces that go in."""

    def __init__(self, opened: Markers | None = None) -> None:
        self._family = opened
        self._state = "start" if opened is None else "thinking"
        self._harmony = Harmony(thinking=True) if opened == HARMONY else None
        self._held = ""
        self._fresh = True

    @property
    def thinking(self) -> bool:
        """True while inside a block."""
        return self._harmony.thinking if self._harmony is not None else self._state == "thinking"

    @property
    def closing(self) -> str | None:
        """What the model would write to end its thinking here and begin the answer; None: it is not thinking."""
        if self._harmony is not None:
            return self._harmony.closing
        return f"\n{self._family.close}" if self._family is not None and self._state == "thinking" else None

    def feed(self, text: str) -> tuple[str, str]:
        """More text: what of it is thinking, what is answer."""
        if self._harmony is not None:
            return self._harmony.feed(text)
        self._held += text
        reasoning = ""
        if self._state == "start" and not self._decide():
            return "", ""
        if self._harmony is not None:
            held, self._held = self._held, ""
            return self._harmony.feed(held)
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
        if self._harmony is not None:
            return self._harmony.finish()
        rest, self._held = self._held, ""
        if self._state == "thinking":
            return rest.rstrip(), ""
        return "", rest

    def _decide(self) -> bool:
        """At the beginning: does thinking open? False: can't be said yet."""
        text = self._held.lstrip()
        if text.startswith(_HARMONY_BEGINS):
            self._harmony, self._held = Harmony(), text
            return True
        for family in FAMILIES:
            if text.startswith(family.open):
                self._held = text[len(family.open) :]
                self._family, self._state = family, "thinking"
                return True
        begins = (*_HARMONY_BEGINS, *(family.open for family in FAMILIES))
        if not text or any(begin.startswith(text) for begin in begins):
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


class Harmony:
    """The messages of gpt-oss: a header, ``<|message|>``, a text, an end; each to a channel.

    ``analysis`` is thinking, ``final`` and what ``commentary`` has for the user are answer. A call of a function goes
    out as ``<|call|>``, its name, a line break and its arguments: see ``HARMONY`` in the tools. Markers are dropped.
    Source: https://cookbook.openai.com/articles/openai-harmony
    """

    def __init__(self, *, thinking: bool = False) -> None:
        self._held = ""
        self._kind = "thinking" if thinking else "header"
        self._fresh = True
        """True until the message it is in has text."""
        self._said = {"thinking": False, "answer": False}

    @property
    def thinking(self) -> bool:
        """True until the answer begins: in thinking, and in headers."""
        return self._kind in ("header", "thinking")

    @property
    def closing(self) -> str | None:
        """As :attr:`ThinkSplitter.closing`."""
        return "<|end|><|start|>assistant<|channel|>final<|message|>" if self._kind == "thinking" else None

    def feed(self, text: str) -> tuple[str, str]:
        """More text: what of it is thinking, what is answer."""
        self._held += text
        out = {"thinking": "", "answer": ""}
        while True:
            if self._kind == "header":
                at = self._held.find("<|message|>")
                if at < 0:
                    break
                header, self._held = self._held[:at], self._held[at + len("<|message|>") :]
                out["answer"] += self._begin(header)
            at, end = min(((at, end) for end in _ENDS if (at := self._held.find(end)) >= 0), default=(-1, ""))
            if at < 0:
                keep = possible_begin(self._held, _ENDS)
                self._held = self._say(self._held[:keep], out) + self._held[keep:]
                break
            self._say(self._held[:at], out)
            self._held = self._held[at if end == "<|start|>" else at + len(end) :]
            self._kind = "header"
        return out["thinking"], out["answer"]

    def finish(self) -> tuple[str, str]:
        """It is over: the rest."""
        rest, self._held = self._held, ""
        if self._kind == "header":
            return "", "" if any(self._said.values()) or rest.startswith("<|") else rest
        return (rest.rstrip(), "") if self._kind == "thinking" else ("", rest)

    def _begin(self, header: str) -> str:
        """A message begins. What goes out of its header: the name of the function it calls."""
        called, channel = _CALLED.search(header), _CHANNEL.search(header)
        thinks = called is None and channel is not None and channel[1] == "analysis"
        self._kind, self._fresh = "thinking" if thinks else "answer", True
        if called is None:
            return ""
        self._said["answer"] = self._fresh = False
        return f"<|call|>{called[1]}\n"

    def _say(self, text: str, out: dict[str, str]) -> str:
        """Text of a message goes out, without whitespace around it. What waits: whitespace that may be at its end."""
        if self._fresh:
            text = text.lstrip()
        said = text.rstrip() if self._kind == "thinking" else text
        if said:
            apart = "\n" if self._fresh and self._said[self._kind] else ""  # two messages don't run into each other
            self._fresh, self._said[self._kind] = False, True
            out[self._kind] += apart + said
        return text[len(said) :]
