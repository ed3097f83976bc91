"""A chat body that is nothing special, read without a schema: 12 µs less a request, 5 % of all that it costs here.

Most bodies have a model, texts, and a few numbers. Such a one is taken apart here and checked by hand, by the rules of
:class:`llmlb.router.gateway.openai_schema.ChatRequest`. Whatever else there is (another field, a part that is no text,
a number out of its range, something malformed) is left to that class, which also has the words for what is wrong with
it. tests/unit/gateway/test_plain_chat.py holds the two together.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from llmlb.bus.messages.base import made
from llmlb.bus.messages.infer import ChatMessage, InferRequest, Sampling
from llmlb.router.gateway.openai_schema import MAX_MODEL_NAME, NEVER_NONE

PLAIN_MAX = 4096
"""Bytes of a body that is looked at: of a longer one the schema is a small part of the cost."""
_FIELDS = frozenset({"model", "messages", "max_tokens", "stream", "temperature", "top_p", "seed"})
_ROLES = ("user", "assistant", "system", "developer", "tool")
_TOKENS_END = 2**31
_SEED_END = 2**63


def plain_chat(body: bytes, request_id: str, seed: int) -> tuple[InferRequest, bool] | None:
    """The request for the bus, and whether it is to be streamed. None: this body is left to the schema.

    ``seed``: where the client gave none. Never raises.
    """
    if len(body) > PLAIN_MAX:
        return None
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(given) is not dict or not given.keys() <= _FIELDS:
        return None
    model, stream = given.get("model"), given.get("stream")
    if type(model) is not str or not 0 < len(model) <= MAX_MODEL_NAME or not (stream is None or type(stream) is bool):
        return None
    messages, sampling = _messages(given.get("messages")), _sampling(given, seed)
    if not messages or sampling is None:
        return None
    fields = {
        "sent_at": time.time(),
        "request_id": request_id,
        "model": model,
        "kind": "chat",
        "messages": messages,
        "sampling": sampling,
        "parallel_tool_calls": True,
        "think": None,
    }
    return made(InferRequest, fields), stream is True


def _messages(given: Any) -> tuple[ChatMessage, ...]:
    """None at all where one is not a role and a text."""
    if type(given) is not list:
        return ()
    messages = []
    for one in given:
        if type(one) is not dict or len(one) != 2:
            return ()
        role, content = one.get("role"), one.get("content")
        if type(content) is not str or role not in _ROLES:
            return ()
        fields = {"role": role, "content": content, "reasoning": None, "tool_call_id": None, "name": None}
        messages.append(made(ChatMessage, fields))
    return tuple(messages)


def _sampling(given: dict[str, Any], seed: int) -> Sampling | None:
    """None where a number is none, or out of its range."""
    tokens, own_seed = given.get("max_tokens"), given.get("seed")
    temperature, top_p = given.get("temperature"), given.get("top_p")
    if tokens is not None and not (type(tokens) is int and 1 <= tokens < _TOKENS_END):
        return None
    if own_seed is not None and not (type(own_seed) is int and -_SEED_END <= own_seed < _SEED_END):
        return None
    if temperature is not None and not (type(temperature) in (float, int) and 0 <= temperature <= 2):
        return None
    if top_p is not None and not (type(top_p) in (float, int) and 0 < top_p <= 1):
        return None
    fields = {
        "temperature": None if temperature is None else float(temperature),
        "top_p": None if top_p is None else float(top_p),
        "top_k": None,
        "min_p": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repeat_penalty": 1.0,
        "seed": seed if own_seed is None else own_seed,
        "max_tokens": tokens,
        "stop": (),
        "logprobs": None,
        "logit_bias": (),
        "unset": NEVER_NONE,
    }
    return made(Sampling, fields)
