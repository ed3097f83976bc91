"""A chat body that is nothing special, read without a schema: 12 µs less a request, 5 % of all that it costs here.

Most bodies have a model, texts or images, and a few numbers. Such a one is taken apart here and checked by hand, by the
rules of :class:`llmlb.router.gateway.openai_schema.ChatRequest`. Whatever else there is (another field, an image that
has to be fetched, a number out of its range, something malformed) is left to that class, which also has the words for
what is wrong with it. tests/unit/gateway/test_plain_chat.py holds the two together.

Of a longer body the messages are read by themselves: :mod:`llmlb.router.gateway.long_messages`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from llmlb.bus.messages.base import made
from llmlb.bus.messages.infer import ChatMessage, InferRequest, Sampling
from llmlb.router.gateway.chat_messages import plain_messages
from llmlb.router.gateway.long_messages import long_messages, span_of_messages
from llmlb.router.gateway.openai_schema import LONGEST_BYTES, MAX_MODEL_NAME, NEVER_NONE

SHORT_MAX = 4096
"""Bytes of a body that is read as a whole."""
PLAIN_MAX = LONGEST_BYTES
"""Bytes of a body that is looked at."""
_FIELDS = frozenset({"model", "messages", "max_tokens", "stream", "temperature", "top_p", "seed"})
_HERE = secrets.token_hex(16)
"""Stands for the messages of a long body while the rest is read. No client knows it, so where it is found they were."""
_TOKENS_END = 2**31
_SEED_END = 2**63


def plain_chat(
    body: bytes, request_id: str, seed: int, compared: Callable[[str], bool] | None = None
) -> tuple[InferRequest, bool] | None:
    """The request for the bus, and whether it is to be streamed. None: this body is left to the schema.

    ``seed``: where the client gave none. ``compared``: whether texts for a model are looked at; None: never. Never
    raises.
    """
    span: tuple[int, int, bool] | None = None
    rest = body
    if len(body) > SHORT_MAX:
        if len(body) > PLAIN_MAX or (span := span_of_messages(body)) is None:
            return None
        rest = b'%b"%b"%b' % (body[: span[0]], _HERE.encode(), body[span[1] :])
    try:
        given = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return None
    if type(given) is not dict or not given.keys() <= _FIELDS:
        return None
    model, stream = given.get("model"), given.get("stream")
    if type(model) is not str or not 0 < len(model) <= MAX_MODEL_NAME or not (stream is None or type(stream) is bool):
        return None
    if (sampling := _sampling(given, seed)) is None:
        return None
    asked = given.get("messages")
    messages: Sequence[ChatMessage] | None = None
    if span is None:
        messages = plain_messages(asked)
    elif asked == _HERE:
        messages = long_messages(body, span, len(given), wanted=compared is not None and compared(model))
    if messages is None:
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
