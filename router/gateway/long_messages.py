"""The messages of a long chat body: read where they are, and sent on as they came.

To write 64 KB of prose as JSON once more takes longer than all the rest of its request, and to copy or read it twice
shows too. Where there is a wheel of it, simdjson reads texts: 64 KB of prose take it 20 µs and of code 45, in place of
25 and 75 (measured on 2 cores); it says how many fields an object has, so that no name comes twice unseen.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from llmlb.bus.messages.infer import ChatMessage, WrittenMessages
from llmlb.router.gateway.chat_messages import ROLES, plain_message, plain_messages
from llmlb.router.gateway.openai_schema import MAX_MESSAGES

_NEAR = 512
"""So near to the beginning and to the end of a long body its messages begin and end, but for bodies of an odd form."""
_MESSAGES = re.compile(
    rb'"messages"[ \t\r\n]*:[ \t\r\n]*(\[)\s*\{\s*"(?:role"\s*:\s*"[a-z]*"\s*,\s*"content|content)"\s*:\s*(["\[])'
)
"""How messages mostly begin: the schema need not read again what was read here in vain."""
_TEXT = {True: ""}
"""Stands for a text that is there, and is not made."""
_COMMA = re.compile(rb"[ \t\r\n]*,")
_BRACKETS_MOST, _BRACES_MOST = 32, 64
"""In a text with more of them a copy costs less than to look at each. A record's JSON may be 200 deep."""
_PARSER_MOST = 256 * 1024
"""Bytes of what simdjson is given: it keeps some 15 times as much as the longest for the next."""


def _parser() -> Any:
    try:
        # Not a plain import: there is no wheel for every platform.
        return importlib.import_module("simdjson").Parser()
    except (ImportError, RuntimeError):  # the second: a processor that it does not know
        return None


_simdjson = _parser()
"""One at a time: it is asked by the event loop's thread alone."""


def span_of_messages(body: bytes) -> tuple[int, int, bool] | None:
    """Where the messages of a body begin and end, and whether they begin with a text. None: not where they mostly are.

    If the body with something else in their place is JSON, and has that as its messages and no fields but ours, then it
    is JSON exactly where what stands there is, and has these messages: the place is that of a value, and no later field
    is of the same name.
    """
    found = _MESSAGES.search(body, 0, _NEAR)
    if found is None:
        return None
    begin = found.start(1)
    end = body.rfind(b"]", max(begin, len(body) - _NEAR)) + 1
    return (begin, end, found[2] == b'"') if end else None


def long_messages(
    body: bytes, span: tuple[int, int, bool], fields: int, *, wanted: bool = True
) -> Sequence[ChatMessage] | None:
    """As :func:`plain_messages` of what stands in a body where :func:`span_of_messages` found it.

    ``fields``: how many different ones the body has where something else stands there; that was read, and is as that
    function wants it. ``wanted``: somebody will look at the texts. What a name that comes twice hides is at
    most as deep as a record may have it.
    """
    begin, end, texts = span
    json = memoryview(body)[begin:end]
    messages = _texts(body, fields, wanted) if texts else None
    if messages is not None:
        return WrittenMessages(messages if wanted else None, json)
    try:
        if _is_one(body, begin, end):
            given = from_json(body, cache_strings="keys")["messages"]
        else:
            ((given,),) = from_json(b"".join((b"[[", json, b"]]")), cache_strings="keys")
    except ValueError:  # no JSON, or several lists
        return None
    messages = plain_messages(given) if len(given) <= MAX_MESSAGES else None
    if messages is None or not all([type(one["content"]) is str for one in given]):  # noqa: C419 - half the time
        return messages  # parts have another form on the bus
    return WrittenMessages(messages, json)


def _texts(body: bytes, fields: int, wanted: bool) -> tuple[ChatMessage, ...] | None:
    """Read by simdjson. None: it is missing, or not all are a role and a text, or a name comes twice.

    A list that ended before its last bracket would be followed by a further field, so with as many fields as with
    something else in its place there is none. Where they are not ``wanted`` the first has no content: it is known to be
    a text, and to make one of it costs half as much as to read it.
    """
    if _simdjson is None or len(body) > _PARSER_MOST:
        return None
    messages: list[ChatMessage] = []
    try:
        document = _simdjson.parse(body)
        given = document["messages"]
        if len(document) != fields or len(given) > MAX_MESSAGES:
            return None
        for one in given:
            if len(one) != 2:
                return None
            role = one["role"]
            content = one["content"] if wanted or messages else _TEXT["content" in one.keys()]  # noqa: SIM118
            if type(content) is not str or role not in ROLES:
                return None
            messages.append(plain_message(role, content))
    except (ValueError, KeyError, TypeError, RuntimeError):  # no JSON, another form, or a number that it can't hold
        return None
    return tuple(messages) or None


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
