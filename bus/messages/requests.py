"""The record of a finished request."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message
from llmlb.bus.messages.infer import Timings, Usage


class RequestRecord(Message):
    """Gateway → stream LLMLB_REQUESTS, once a request: how it went. Holds no prompt and no answer."""

    type: Literal["llmlb.request.record.v1"] = "llmlb.request.record.v1"
    request_id: str = Field(description="the request")
    model: str = Field(description="the name the client used")
    node_id: str = Field(description="the node that answered, or was asked last")
    attempts: int = Field(ge=1, description="nodes asked")
    placement: str = Field(description="why this node")
    status: Literal["ok", "error", "cancelled"] = Field(description="how it ended")
    reason: str | None = Field(default=None, description="reason of the error")
    finish_reason: str | None = Field(default=None, description="stop or length")
    usage: Usage | None = Field(default=None, description="tokens, where the end was reached")
    timings: Timings | None = Field(default=None, description="times on the node")
    first_token_ms: float | None = Field(default=None, description="from arrival at the gateway to the first text")
    total_ms: float = Field(description="from arrival at the gateway to the end")
