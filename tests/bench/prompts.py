"""Prompts of an exact number of tokens, each beginning differently, so that no cache knows it."""

from __future__ import annotations

import itertools
from pathlib import Path

import llama_cpp

from tests.bench.client import Messages

_WORDS = """
river house garden window table paper music winter summer morning evening market bridge forest mountain island
letter number picture school teacher doctor farmer soldier captain engine wheel metal stone glass water fire
light shadow silver golden yellow purple orange green brown black white small large heavy quick slow early late
"""
WORDS = _WORDS.split()
TASK = "Write a very long story about it."


class PromptMaker:
    """Makes prompts for one model. Its template has to be ChatML."""

    def __init__(self, model: Path) -> None:
        self._vocabulary = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
        self.number = 0
        """Of the next prompt. Each number makes another one."""

    def _count(self, messages: Messages) -> int:
        text = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)
        rendered = f"{text}<|im_start|>assistant\n".encode()
        return len(self._vocabulary.tokenize(rendered, add_bos=False, special=True))

    def cold(self, tokens: int) -> Messages:
        """A new prompt of this many tokens, the template's included."""
        number = self.number
        self.number += 1
        first, second = divmod(number, len(WORDS))
        head = f"{WORDS[(7 * second) % len(WORDS)]} {WORDS[first % len(WORDS)]}"
        words = itertools.cycle(WORDS[number % len(WORDS) :] + WORDS[: number % len(WORDS)])
        fill: list[str] = []
        while True:
            messages = [
                {"role": "system", "content": head},
                {"role": "user", "content": f"{' '.join(fill)}. {TASK}" if fill else TASK},
            ]
            missing = tokens - self._count(messages)
            if missing == 0:
                return messages
            if missing < 0:
                raise ValueError(f"no prompt of {tokens} tokens: {-missing} too many")
            fill += itertools.islice(words, max(1, missing - 2))

    def story(self) -> Messages:
        """A new short prompt whose answer goes on for long."""
        number = self.number
        self.number += 1
        one, other = WORDS[number % len(WORDS)], WORDS[(number // len(WORDS) + 11 * number) % len(WORDS)]
        text = f"Write a very long story about the {one} and the {other}, with many chapters. Begin with chapter 1."
        return [{"role": "system", "content": f"story: {other} {one}"}, {"role": "user", "content": text}]
