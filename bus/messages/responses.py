"""Stored answers of ``/v1/responses``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message


class StoredResponse(Message):
    """Gateway → stream LLMLB_RESPONSES: an answer that a later request may go on from. Gateways read it back."""

    type: Literal["llmlb.response.stored.v1"] = "llmlb.response.stored.v1"
    response_id: str = Field(description="the answer's id, as its client has it")
    key: str = Field(default="", description="digest of the API key that made it; only that one sees it")
    previous: str | None = Field(default=None, description="the answer this one went on from")
    input: str = Field(description="the items that came in with this request alone, a JSON list")
    response: str = Field(description="the answer as it went to the client, a JSON object")
