"""Grammars of llama.cpp: made from JSON schemas, and as a mask over logits."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from llmlb.bus.errors import InvalidRequest
from llmlb.node.engine import grammar_limits
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.llama_native import converter, lib
from llmlb.node.engine.repeats import converted
from llmlb.node.engine.sampling import Logits, best

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""Source: llama.h, ``llama_token_data``."""


def schema_grammar(schema: str) -> str:
    """The GBNF of a JSON schema, with the rule ``root``. Raises InvalidRequest when it can't be enforced."""
    try:
        grammar = converted(converter, schema)
    except RecursionError:
        raise InvalidRequest("the JSON schema is nested too deeply", param="response_format") from None
    except Exception as error:  # the converter raises whatever it stumbles over
        raise InvalidRequest(
            f"the JSON schema can't be enforced: {str(error)[:200] or type(error).__name__}", param="response_format"
        ) from error
    return grammar


SLOW_S = 5.0
"""CPU time of one mask at most: of a grammar with 2,000 alternatives it takes 1.6 s (SmolLM2's 49,000 tokens)."""
HEAVY_S = 0.01
"""CPU time of looking at one token at most: it is that of all readings that are open behind it, before any is made.

With the largest enumeration that is taken it is 0.6 ms. To accept a token takes the square of the readings: 0.1 to
0.6 s where looking took 10 ms, 7 s where it took 60.
"""
SLICE_S = 0.025
"""Time for a mask at once, where others wait for their step."""
FIRST = 256
"""Tokens of which the order is found out first: mostly one of them is allowed."""
SORT_S = 0.02
"""To look at all tokens takes 5 ms with a plain grammar, and to sort them too."""
_PIECE = 8
_PIECE_S = 0.005


class Unfinished(Exception):
    """A mask takes longer than its slice: ask for the same again, and it goes on where it was."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on stderr: llama.cpp prints a grammar that it refuses, and with it the client's schema."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class GrammarMask:
    """A GBNF grammar at one place of an answer. Implements :class:`llmlb.node.engine.sampling.Grammar`.

    Everybody's next token waits while one token is masked, so :meth:`mask` looks at the likely tokens first, only until
    it has found ``wanted``, and raises Unfinished now and then. The time is the thread's own: a machine that is busy
    elsewhere makes no grammar slow.
    """

    def __init__(self, model: Model, grammar: str, *, wanted: int = 0, slice_s: float = math.inf) -> None:
        """``wanted``: how many of the likeliest allowed tokens are enough, 0 for all. Raises InvalidRequest when
        llama.cpp does not take the grammar."""
        self._sampler = None
        self.trouble: str | None = None
        """Why the answer can't go on; None as long as it can."""
        self._allowed = -1
        """The token that was found to be allowed here; -1 for none."""
        grammar_limits.check(grammar)
        with _quiet():
            self._sampler = lib.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
        if not self._sampler:
            raise InvalidRequest("the grammar of this schema is not accepted by llama.cpp", param="response_format")
        self._array = np.zeros(model.vocabulary, dtype=_CANDIDATE)
        self._wanted = wanted or model.vocabulary
        self._slice_s = slice_s
        self._search: _Search | None = None

    def _apply(self, tokens: npt.NDArray[np.intp] | list[int]) -> tuple[npt.NDArray[np.bool_], float]:
        """Which of these may come next, and the CPU time that took."""
        data = self._array[: len(tokens)]
        data["id"], data["logit"] = tokens, 0.0
        pointer = data.ctypes.data_as(lib.llama_token_data_p)
        array = lib.llama_token_data_array(data=pointer, size=data.size, selected=-1, sorted=False)
        began = time.thread_time()
        lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return data["logit"] != -np.inf, time.thread_time() - began

    def _give_up(self) -> None:
        self.trouble = "the JSON schema takes too long to enforce: too many readings of the answer are open"

    def allows(self, token: int) -> bool:
        if self.trouble is not None or token == self._allowed:
            return True
        found, took = self._apply([token])
        if took > HEAVY_S and self._apply([token])[1] > HEAVY_S:  # the first time may have been page faults
            self._give_up()
        allowed = bool(found[0])
        self._allowed = token if allowed else -1
        return allowed

    def mask(self, logits: Logits) -> None:
        """Raises Unfinished after ``slice_s``: the same logits are to be brought again."""
        search = self._search
        if search is None:
            search = self._search = _Search(logits, self._wanted)
        until = time.monotonic() + self._slice_s
        while self.trouble is None and (tokens := search.next(logits)) is not None:
            search.note(tokens, *self._apply(tokens))
            if search.took > SLOW_S:
                self._give_up()
            elif time.monotonic() > until:
                raise Unfinished
        self._search = None
        if self.trouble is None:
            rest = np.ones(logits.size, dtype=bool)
            rest[search.allowed()] = False
            logits[rest] = -np.inf

    def accept(self, token: int) -> None:
        """It came. One that is not allowed is trouble: llama.cpp would end the process."""
        self._search = None
        if not self.allows(token):
            self.trouble = "no token of this model goes on with the answer as the JSON schema wants it"
        if self.trouble is None:
            lib.llama_sampler_accept(self._sampler, token)
        self._allowed = -1

    def close(self) -> None:
        """Free it; may be called twice."""
        if self._sampler:
            lib.llama_sampler_free(self._sampler)
            self._sampler = None


class _Search:
    """For allowed tokens, the likely ones first. Pure but for what it is told."""

    def __init__(self, logits: Logits, wanted: int) -> None:
        self._wanted = wanted
        self._order = best(logits, FIRST) if wanted < logits.size else np.arange(logits.size)
        self._at = 0
        self._piece = _PIECE
        self._found: list[npt.NDArray[np.intp]] = []
        self._count = 0
        self.took = 0.0
        """CPU time until now."""

    def next(self, logits: Logits) -> npt.NDArray[np.intp] | None:
        """The tokens to look at next; None: enough was found, or everything looked at."""
        if self._count >= self._wanted:
            return None
        if self._at == self._order.size:
            if self._at == logits.size:
                return None
            self._go_on(logits)
        tokens = self._order[self._at : self._at + self._piece]
        self._at += tokens.size
        return tokens

    def _go_on(self, logits: Logits) -> None:
        """None of the first ones, or too few: all others, in their order where to look is dearer than to sort."""
        if self.took * logits.size / self._at > SORT_S:
            self._order = best(logits, 0)
            return
        others = np.ones(logits.size, dtype=bool)
        others[self._order] = False
        self._order = np.concatenate([self._order, np.flatnonzero(others)])
        self._wanted = logits.size

    def note(self, tokens: npt.NDArray[np.intp], allowed: npt.NDArray[np.bool_], took: float) -> None:
        """What came out, and in what time: the next piece is larger after a short one."""
        self._found.append(tokens[allowed])
        self._count += int(np.count_nonzero(allowed))
        self.took += took
        if took < _PIECE_S:
            self._piece *= 2
        elif took > 2 * _PIECE_S:
            self._piece = max(1, self._piece // 2)

    def allowed(self) -> npt.NDArray[np.intp]:
        """The tokens found, in no order."""
        return np.concatenate([np.empty(0, dtype=np.intp), *self._found])
