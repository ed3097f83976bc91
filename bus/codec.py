"""Bytes ⇄ message. The only file that knows the encoding: UTF-8 JSON, one object a message.

Source of the size limit: nats-server's ``max_payload``, 8 MiB on the embedded server (``bus/server.py``).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from llmlb.bus.errors import BadMessage, MessageTooLarge
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.infer import (
    Accepted,
    AnyReply,
    Delta,
    Embedded,
    End,
    Failed,
    InferRequest,
    Progress,
    WrittenMessages,
)

log = logging.getLogger("llmlb.bus.codec")

MAX_MESSAGE_BYTES = 8 * 1024 * 1024

M = TypeVar("M", bound=Message)

Pieces = tuple[bytes | memoryview, ...]
"""A message that is sent piece by piece, so that a long text of it is not copied."""

unknown_types: Counter[str] = Counter()
"""How often each unknown message type was met; each is logged once."""

AnyOf = Accepted | Progress | Delta | Embedded | End | Failed
_REPLY: Callable[[bytes], AnyOf] = TypeAdapter[AnyOf](AnyReply).validator.validate_json


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises MessageTooLarge above MAX_MESSAGE_BYTES."""
    data = message.__pydantic_serializer__.to_json(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"the message has {len(data)} bytes; at most {MAX_MESSAGE_BYTES} fit into one bus message"
        )
    return data


def encode_any(message: Message) -> bytes:
    """As :func:`encode`, however large: for :mod:`llmlb.bus.bulk`. Long texts cost a fifth of what pydantic needs.

    Raises BadMessage for text that is not UTF-8.
    """
    try:
        return orjson.dumps(vars(message), default=vars)
    except TypeError as error:
        raise BadMessage("a message that can't be written", detail=str(error)) from error


def encode_request(request: InferRequest) -> Pieces:
    """As :func:`encode_any`, of a request: JSON that its messages came with goes on as it is."""
    messages = request.messages
    if not isinstance(messages, WrittenMessages):
        return (encode_any(request),)
    return encode_around(request, "messages", messages.json)


def encode_around(message: Any, name: str, json: bytes | memoryview) -> Pieces:
    """As :func:`encode_any`, with ``json`` as the value of one field. Nobody looks whether it is JSON."""
    fields = {**vars(message)}
    del fields[name]
    try:
        head = orjson.dumps(fields, default=vars)
    except TypeError as error:
        raise BadMessage("a message that can't be written", detail=str(error)) from error
    return b'%b,"%b":' % (head[:-1], name.encode()), json, b"}"


def encode_plain(message: Any) -> bytes:
    """The bytes of a dataclass with the fields of a message: what pydantic would need 20 µs for. Raises as encode.

    Parts of it may be messages' parts. Raises BadMessage for text that is not UTF-8.
    """
    try:
        data = orjson.dumps(message, default=vars)
    except TypeError as error:
        raise BadMessage("a message that can't be written", detail=str(error)) from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"the message has {len(data)} bytes; at most {MAX_MESSAGE_BYTES} fit into a message")
    return data


def decode_as(cls: type[M], data: bytes) -> M:
    """The message of a known type. Raises BadMessage when the bytes are not one, or carry another type."""
    try:
        return cls.model_validate_json(data)
    except ValidationError as error:
        raise BadMessage(f"not a {cls.__name__} message", detail=str(error)) from error


def decode_reply(data: bytes) -> AnyOf:
    """One reply of an inference stream. Raises BadMessage."""
    try:
        return _REPLY(data)
    except ValidationError as error:
        raise BadMessage("not a reply of an inference stream", detail=str(error)) from error


def decode(data: bytes) -> Message | None:
    """The message in ``data``, or None when its type is unknown (counted, logged once a type).

    Raises BadMessage when the bytes are no message at all.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadMessage("not JSON", detail=str(error)) from error
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        raise BadMessage("a message needs a type")
    cls = Message.registry.get(body["type"])
    if cls is None:
        unknown_types[body["type"]] += 1
        if unknown_types[body["type"]] == 1:
            log.warning("unknown_message_type type=%s", body["type"])
        return None
    return decode_as(cls, data)
