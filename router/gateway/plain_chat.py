"""A chat body that is nothing special, read without a schema: 12 µs less a request, 5 % of all that it costs here.

Most bodies have a model, texts or images, and a few numbers. Such a one is taken apart here and checked by hand, by the
rules of :class:`llmlb.router.gateway.openai_schema.ChatRequest`. Whatever else there is (another field, an image that
has to be fetched, a number out of its range, something malformed) is left to that class, which also has the words for
what is wrong with it. tests/unit/gateway/test_plain_chat.py holds the two together.

Of a longer body the messages are read by themselves, and their JSON goes on the bus as it came: writing 64 KB of prose
once more takes longer than all the rest of its request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import orjson
from pydantic_core import from_json

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.base import made
from llmlb.bus.messages.infer import ChatMessage, ContentPart, InferRequest, Sampling, WrittenMessages
from llmlb.router.gateway.openai_messages import MAX_IMAGES, MAX_PARTS, ImageAddress, content_part, text_of
from llmlb.router.gateway.openai_schema import LONGEST_BYTES, MAX_MESSAGES, MAX_MODEL_NAME, NEVER_NONE

SHORT_MAX = 4096
"""Bytes of a body that is read as a whole."""
PLAIN_MAX = LONGEST_BYTES
"""Bytes of a body that is looked at."""
_FIELDS = frozenset({"model", "messages", "max_tokens", "stream", "temperature", "top_p", "seed"})
_MESSAGES = b'"messages"'
_NEAR = 512
"""So near to the beginning and to the end of a long body its messages begin and end, but for bodies of an odd form."""
_SPACE = b" \t\r\n"
_BEGIN = re.compile(rb'\[\s*\{\s*"(?:role"\s*:\s*"[a-z]*"\s*,\s*"content|content)"\s*:\s*["\[]')
"""How messages mostly begin: the schema need not read again what was read here in vain."""
_COMMA = re.compile(rb"[ \t\r\n]*,")
_BRACKETS_MOST, _BRACES_MOST = 32, 64
"""In a text with more of them a copy costs less than to look at each. A record's JSON may be 200 deep."""
_ROLES = ("user", "assistant", "system", "developer", "tool")
_TOKENS_END = 2**31
_SEED_END = 2**63


def plain_chat(body: bytes, request_id: str, seed: int) -> tuple[InferRequest, bool] | None:
    """The request for the bus, and whether it is to be streamed. None: this body is left to the schema.

    ``seed``: where the client gave none. Never raises.
    """
    span: tuple[int, int] | None = None
    rest = body
    if len(body) > SHORT_MAX:
        if len(body) > PLAIN_MAX or (span := _span(body)) is None:
            return None
        rest = body[: span[0]] + b"[]" + body[span[1] :]
    try:
        given = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return None
    if type(given) is not dict or not given.keys() <= _FIELDS:
        return None
    model, stream = given.get("model"), given.get("stream")
    if type(model) is not str or not 0 < len(model) <= MAX_MODEL_NAME or not (stream is None or type(stream) is bool):
        return None
    asked, sampling = given.get("messages"), _sampling(given, seed)
    messages = _messages(asked) if span is None else _written(asked, body, *span)
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


def _span(body: bytes) -> tuple[int, int] | None:
    """Where the messages of a body begin and end. None: they are not where they mostly are.

    If the body with an empty list in their place is JSON, has no fields but ours, and an empty list of messages, then
    it is JSON exactly where what stands there is, and has these messages: the name before them stands where a name can
    stand, since no text with a quotation mark in it is one of our fields, and no later field of the same name is a
    list, since what is behind the last bracket has none.
    """
    name = body.find(_MESSAGES, 0, _NEAR)
    begin = body.find(b"[", name, _NEAR) if name >= 0 else -1
    end = body.rfind(b"]", max(begin, len(body) - _NEAR)) + 1
    if begin < 0 or end <= begin or body[name + len(_MESSAGES) : begin].strip(_SPACE) != b":":
        return None
    return None if _BEGIN.match(body, begin) is None else (begin, end)


def _written(asked: Any, body: bytes, begin: int, end: int) -> Sequence[ChatMessage]:
    """As :func:`_messages` of what stands in a body from ``begin`` to ``end``; ``asked`` is what was read without it.

    It is read as deep as a record has it: a name that comes twice hides values of any depth, and there is a limit.
    """
    if asked != []:
        return ()
    json = memoryview(body)[begin:end]
    try:
        if _is_one(body, begin, end):
            given = from_json(body, cache_strings="keys")["messages"]
        else:
            ((given,),) = from_json(b"".join((b"[[", json, b"]]")), cache_strings="keys")
    except ValueError:  # no JSON, or several lists
        return ()
    messages = _messages(given) if len(given) <= MAX_MESSAGES else ()
    if not messages or not all([type(one["content"]) is str for one in given]):  # noqa: C419 - half the time
        return messages  # parts have another form on the bus
    return WrittenMessages(messages, json)


def _is_one(body: bytes, begin: int, end: int) -> bool:
    """If the body is JSON, what stands here is one list, and not deep: then it need not be copied to be read alone.

    A list that ended before its last bracket would be followed by a comma and another field. False: not known.
    """
    at = begin
    for _ in range(_BRACKETS_MOST):
        at = body.find(b"]", at, end - 1) + 1
        if not at:
            break
        if _COMMA.match(body, at):
            return False
    else:
        return False
    at = begin
    for _ in range(_BRACES_MOST):
        at = body.find(b"{", at, end) + 1
        if not at:
            return True
    return False


def _messages(given: Any) -> tuple[ChatMessage, ...]:
    """None at all where one is not a role and a text, or parts that are texts and images."""
    if type(given) is not list:
        return ()
    messages, pieces, images = [], 0, 0
    for one in given:
        if type(one) is not dict or len(one) != 2:
            return ()
        role, content = one.get("role"), one.get("content")
        if role not in _ROLES:
            return ()
        fields = {"role": role, "content": content, "reasoning": None, "tool_call_id": None, "name": None}
        if type(content) is list:
            if (parts := _parts(content)) is None:
                return ()
            fields["content"] = text_of(parts)
            if found := len([part for part in parts if part.type == "image"]):
                fields["parts"] = parts
            pieces, images = pieces + len(parts), images + found
        elif type(content) is not str:
            return ()
        messages.append(made(ChatMessage, fields))
    return tuple(messages) if pieces <= MAX_PARTS and images <= MAX_IMAGES else ()


def _parts(given: list[Any]) -> tuple[ContentPart, ...] | None:
    """None: one is wrong, or has to be fetched."""
    addresses: list[ImageAddress] = []
    try:
        parts = tuple([content_part(part, "", addresses) for part in given])
    except InvalidRequest:
        return None
    return None if addresses else parts


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
