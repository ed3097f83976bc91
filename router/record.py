"""The record of a finished request as its gateway makes it: plain, since a message class costs 20 µs a request.

Without slots, as orjson writes the ``__dict__`` of an object at 40 % of what its attributes cost one by one.
Field by field an :class:`llmlb.bus.messages.requests.RequestRecord`, which is what everybody else reads it as;
tests/unit/router/test_record.py holds the two together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmlb.bus import codec
from llmlb.bus.messages.infer import FinishReason, Timings, Usage


@dataclass
class Tried:
    """One node that was asked; a ``RequestAttempt``."""

    node_id: str
    placement: str
    reason: str | None
    tokens: int
    ms: float


@dataclass
class Called:
    """A tool that the answer called; a ``ToolCall``."""

    id: str
    name: str
    arguments: str


@dataclass(kw_only=True)
class Record:
    """How a request went; a ``RequestRecord``, where the fields are explained."""

    request_id: str
    client_request_id: str | None
    model: str
    node_id: str
    attempts: int
    placement: str
    status: Literal["ok", "error", "cancelled"]
    reason: str | None
    finish_reason: FinishReason | None
    usage: Usage | None
    timings: Timings | None
    kind: Literal["chat", "completion", "embedding"]
    path: str
    streamed: bool
    key: str | None
    gateway_id: str
    tried: Sequence[Tried]
    migrations: int
    queue_ms: float
    inter_token_ms: float | None
    bytes_in: int
    bytes_out: int
    request_body: str | None
    request_json: bytes | None
    """JSON, which goes into the message as it is."""
    answer: str | None
    reasoning: str | None
    tool_calls: Sequence[Called]
    started_at: float
    first_token_ms: float | None
    total_ms: float
    type: Literal["llmlb.request.record.v1"] = "llmlb.request.record.v1"
    sent_at: float = field(default_factory=time.time)


def encode(record: Record) -> codec.Pieces:
    """The message. Raises BadMessage, MessageTooLarge."""
    if record.request_json is None:
        return (codec.encode_plain(record),)
    return codec.encode_around(record, "request_json", record.request_json)
