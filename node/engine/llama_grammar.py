"""Grammars of llama.cpp: made from JSON schemas, and as a mask over logits."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf

from llmlb.bus.errors import InvalidRequest
from llmlb.node.engine.llama_library import Logits, Model


def schema_grammar(schema: str) -> str:
    """The GBNF of a JSON schema, with the rule ``root``. Raises InvalidRequest when it can't be enforced."""
    try:
        grammar: str = json_schema_to_gbnf(schema)
    except RecursionError:
        raise InvalidRequest("the JSON schema is nested too deeply", param="response_format") from None
    except Exception as error:  # the converter raises whatever it stumbles over
        raise InvalidRequest(
            f"the JSON schema can't be enforced: {str(error)[:200] or type(error).__name__}", param="response_format"
        ) from error
    return grammar


class GrammarMask:
    """A GBNF grammar at one place of an answer. Implements :class:`llmlb.node.engine.sampling.Grammar`."""

    def __init__(self, model: Model, grammar: str) -> None:
        """Raises InvalidRequest when llama.cpp does not take the grammar."""
        self._sampler = lib.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
        if not self._sampler:
            raise InvalidRequest("the grammar of this schema is not accepted by llama.cpp", param="response_format")
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._one = np.zeros(1, dtype=kind)
        self._all = np.zeros(model.vocabulary, dtype=kind)

    def _apply(self, data: Any) -> None:
        pointer = data.ctypes.data_as(lib.llama_token_data_p)
        array = lib.llama_token_data_array(data=pointer, size=data.size, selected=-1, sorted=False)
        lib.llama_sampler_apply(self._sampler, ctypes.byref(array))

    def allows(self, token: int) -> bool:
        self._one["id"], self._one["logit"] = token, 1.0
        self._apply(self._one)
        return bool(self._one["logit"][0] != -np.inf)

    def mask(self, logits: Logits) -> None:
        self._all["id"], self._all["logit"] = np.arange(self._all.size), logits
        self._apply(self._all)
        logits[:] = self._all["logit"]

    def accept(self, token: int) -> None:
        lib.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        """Free it; may be called twice."""
        if self._sampler:
            lib.llama_sampler_free(self._sampler)
            self._sampler = None
