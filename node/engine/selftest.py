"""Does an answer depend on what else happens? Found out on the loaded model, in pieces, while nothing else is to do.

What :mod:`llmlb.node.engine.kv` counts on was read and measured for llama.cpp's CPU kernels. Another build, model or
GPU may differ; so each loaded model is asked, and where the rules don't hold the node does not promise it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence

import numpy as np

from llmlb.node.engine import kv
from llmlb.node.engine.llama_context import Context
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.sampling import Logits

QUIET_S = 1.0
"""So long after an answer the self-test goes on."""
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


class IdleTest:
    """When the self-test of a context runs: in pieces, while nothing is asked. Begins anew when it was left."""

    def __init__(self, model: Model, context: Context, slots: int) -> None:
        self.stop = threading.Event()
        """Set from any thread: there is something else to do. Ends its wait, and the call it is in."""
        self.over = not context.has_memory
        self._model, self._context, self._slots = model, context, slots
        self._test: SelfTest | None = None

    def leave(self) -> None:
        """There is something to do: it begins anew later, as its sequences may be used."""
        if self._test is not None:
            self._test.leave()
            self._test = None

    def step(self, used_at: Sequence[float], empty: Callable[[int], None]) -> bool | None:
        """One call, or a wait for one. None while it goes on; then whether answers stay the same, and it is over.

        ``used_at``: when each sequence was used last, of the monotonic clock; ``empty`` gets each that it takes.
        """
        # It takes the cache of two sequences, which whoever asks again at once would have to compute anew.
        if self.stop.wait(max(0.0, max(used_at) + QUIET_S - time.monotonic())):
            self.stop.clear()  # a command is in the queue, or was taken out of it before this was set
            return None
        if self._test is None:
            # The pair that was not used for longest: what the others hold may be asked for again.
            first = min(range(max(1, self._slots - 1)), key=lambda seq: max(used_at[seq : seq + 2]))
            pair = tuple(range(self._slots))[first : first + 2]
            for seq in pair:
                empty(seq)
            self._test = SelfTest(self._model, self._context, pair)
        self._context.abortable(True)
        safe = self._test.step()
        self._context.abortable(False)
        if safe is None:
            return None
        if not safe and self.stop.is_set():  # ended on the way, so it says nothing
            self.leave()
            return None
        self._test, self.over = None, True
        return safe
