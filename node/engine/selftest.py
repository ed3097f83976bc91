"""Does an answer depend on what else happens? Found out on the loaded model, in pieces, while nothing else is to do.

What :mod:`llmlb.node.engine.kv` counts on was read and measured for llama.cpp's CPU kernels. Another build, model or
GPU may differ; so each loaded model is asked, and where the rules don't hold the node does not promise it.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from llmlb.node.engine import kv
from llmlb.node.engine.llama_library import Context, Logits, Model

TAIL = 11
TOKENS = 5 * kv.BLOCK + 21 + TAIL
"""Long enough that a single row would take the third kernel, and no whole number of blocks."""


class SelfTest:
    """Uses one sequence or two that are next to each other; leaves them empty."""

    def __init__(self, model: Model, context: Context, sequences: tuple[int, ...]) -> None:
        self._model = model
        self._context = context
        self._sequences = sequences
        self._work = self._run()
        self.leave()

    def leave(self) -> None:
        """Empty its sequences: at its ends, and when it is given up because there is something to do."""
        for sequence in self._sequences:
            self._context.forget(sequence)

    def step(self) -> bool | None:
        """One call. None while it goes on; then True: answers stay the same, or False."""
        try:
            next(self._work)
        except StopIteration as stop:
            self.leave()
            return bool(stop.value)
        return None

    def _prefill(self, seq: int, tokens: list[int], room: int, small: int) -> Generator[None, None, Logits | None]:
        """Prefill as the engine does it, with a tail as of a continuation; the last row's logits."""
        large = len(tokens) - TAIL
        at = 0
        while at < len(tokens):
            stop = at + kv.large_call(large - at, room) if at < large else min(at + small, len(tokens))
            if self._context.decode_run(tokens[at:stop], at, seq, wanted=stop == len(tokens)) != 0:
                return None
            at = stop
            yield
        return np.array(self._context.logits(1)[0])

    def _run(self) -> Generator[None, None, bool]:
        size = min(TOKENS, self._context.tokens - 4)
        if size < 3 * kv.BLOCK + TAIL or not self._model.removable:
            return False
        here, there = self._sequences[0], self._sequences[-1]
        tokens = [int(n) for n in np.random.default_rng(0).integers(0, self._model.vocabulary, size)]
        one = yield from self._prefill(here, tokens, kv.BLOCK, kv.SMALL)
        if one is None:
            return False
        # Alone, with a second row.
        if self._context.decode([(tokens[1], size, here, True), (tokens[2], size + 1, here, True)]) != 0:
            return False
        first, second = np.array(self._context.logits(2))
        self._context.forget(here, size)
        yield
        # The same row in a larger call, and the second one after it.
        again = [(tokens[1], size, here, True), *((tokens[2 + i], size + 1 + i, here, i == 0) for i in range(2))]
        if self._context.decode(again) != 0:
            return False
        third, fourth = np.array(self._context.logits(2))
        if not (np.array_equal(first, third) and np.array_equal(second, fourth)):
            return False
        self._context.forget(here, size)
        yield
        if here == there:
            return True
        other = yield from self._prefill(there, tokens, 2 * kv.BLOCK + 7, 4)
        if other is None or not np.array_equal(one, other):
            return False
        # Beside a neighbour.
        if self._context.decode([(tokens[1], size, here, True), (tokens[3], size, there, True)]) != 0:
            return False
        beside = np.array(self._context.logits(2)[0])
        yield
        return bool(np.array_equal(first, beside))
