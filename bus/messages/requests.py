"""The record of a finished request."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from llmlb.bus.messages.base import Message, Part
from llmlb.bus.messages.infer import Timings, ToolCall, Usage


class RequestAttempt(Part):
    """One node that was asked."""

    node_id: str = Field(description="the node")
    placement: str = Field(description="why this node")
    reason: str | None = Field(default=None, description="what ended it before its end; None: it brought the end")
    tokens: int = Field(default=0, ge=0, description="tokens of the answer that came from it")
    ms: float = Field(default=0.0, description="how long it had the request")


class RequestRecord(Message):
    """Gateway → stream LLMLB_REQUESTS, once a request: how it went. Images and secrets are cut out of what it holds."""

    type: Literal["llmlb.request.record.v1"] = "llmlb.request.record.v1"
    request_id: str = Field(description="the request")
    client_request_id: str | None = Field(default=None, description="the x-request-id that its client sent, if any")
    model: str = Field(description="the name the client used")
    node_id: str = Field(description="the node that answered, or was asked last")
    attempts: int = Field(ge=1, description="nodes asked")
    placement: str = Field(description="why this node")
    status: Literal["ok", "error", "cancelled"] = Field(description="how it ended")
    reason: str | None = Field(default=None, description="reason of the error")
    finish_reason: str | None = Field(default=None, description="stop or length")
    usage: Usage | None = Field(default=None, description="tokens, where the end was reached")
    timings: Timings | None = Field(default=None, description="times on the node")
    kind: Literal["chat", "completion", "embedding"] = Field(default="chat", description="what was asked for")
    path: str = Field(default="", description="HTTP path of the request")
    streamed: bool = Field(default=False, description="True: the client asked for a stream")
    key: str | None = Field(default=None, description="id of the API key; None: without one")
    gateway_id: str = Field(default="", description="the gateway process")
    tried: tuple[RequestAttempt, ...] = Field(default=(), description="every node that was asked, in order")
    migrations: int = Field(default=0, ge=0, description="times the answer was carried on elsewhere")
    queue_ms: float = Field(default=0.0, description="time in the gateway's queue")
    inter_token_ms: float | None = Field(default=None, description="mean time between tokens, from first to last")
    bytes_in: int = Field(default=0, ge=0, description="bytes of the request's body")
    bytes_out: int = Field(default=0, ge=0, description="bytes of text of the answer, UTF-8")
    request_body: str | None = Field(default=None, description="JSON of the request, 64 KiB at most")
    request_json: dict[str, Any] | None = Field(
        default=None, description="the request itself, in place of its text, where it is long and nothing was cut out"
    )
    answer: str | None = Field(default=None, description="text of the answer, 64 KiB at most")
    reasoning: str | None = Field(default=None, description="what the model thought before it, 64 KiB at most")
    tool_calls: tuple[ToolCall, ...] = Field(default=(), description="the tools that it called")
    started_at: float = Field(default=0.0, description="when it arrived, Unix seconds")
    first_token_ms: float | None = Field(default=None, description="from arrival at the gateway to the first text")
    total_ms: float = Field(description="from arrival at the gateway to the end")
