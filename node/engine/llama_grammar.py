"""Grammars of llama.cpp: made from JSON schemas, and as a mask over logits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from typing import Any

import llama_cpp.llama_cpp as lib
import llama_cpp.llama_grammar as converter
import numpy as np

from llmlb.bus.errors import InvalidRequest
from llmlb.node.engine import grammar_limits
from llmlb.node.engine.llama_library import Logits, Model
from llmlb.node.engine.repeats import converted


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
"""A grammar that takes so long for one token is given up: with each token more readings of the answer may be open."""


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
    """A GBNF grammar at one place of an answer. Implements :class:`llmlb.node.engine.sampling.Grammar`."""

    def __init__(self, model: Model, grammar: str) -> None:
        """Raises InvalidRequest when llama.cpp does not take the grammar."""
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
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._one = np.zeros(1, dtype=kind)
        self._all = np.zeros(model.vocabulary, dtype=kind)

    def _apply(self, data: Any) -> None:
        pointer = data.ctypes.data_as(lib.llama_token_data_p)
        array = lib.llama_token_data_array(data=pointer, size=data.size, selected=-1, sorted=False)
        began = time.monotonic()
        lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        if time.monotonic() - began > SLOW_S:
            self.trouble = "the JSON schema takes too long to enforce: too many readings of the answer are open"

    def allows(self, token: int) -> bool:
        if self.trouble is not None:
            return True
        self._one["id"], self._one["logit"] = token, 1.0
        self._apply(self._one)
        allowed = bool(self._one["logit"][0] != -np.inf)
        self._allowed = token if allowed else -1
        return allowed

    def mask(self, logits: Logits) -> None:
        self._all["id"], self._all["logit"] = np.arange(self._all.size), logits
        self._apply(self._all)
        logits[:] = self._all["logit"]

    def accept(self, token: int) -> None:
        """It came. One that is not allowed is trouble: llama.cpp would end the process."""
        if self._allowed != token and not self.allows(token):
            self.trouble = "no token of this model goes on with the answer as the JSON schema wants it"
        if self.trouble is None:
            lib.llama_sampler_accept(self._sampler, token)
        self._allowed = -1

    def close(self) -> None:
        """Free it; may be called twice."""
        if self._sampler:
            lib.llama_sampler_free(self._sampler)
            self._sampler = None
