"""What happened: past tense, kept in stream LLMLB_EVENTS."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message

NodeState = Literal["pending", "registering", "online", "offline"]


class NodeStateChanged(Message):
    """Router → stream: a node joined, changed its state, or left."""

    type: Literal["llmlb.event.node_state_changed.v1"] = "llmlb.event.node_state_changed.v1"
    node_id: str = Field(description="who")
    name: str = Field(description="its host name")
    before: NodeState | None = Field(description="None: first seen")
    after: NodeState = Field(description="state now")
    reason: str = Field(description="why, in words")
