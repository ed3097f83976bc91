"""What happened: past tense, kept in stream LLMLB_EVENTS.

Every router sees the same changes and tells them; the stream keeps each once (``Nats-Msg-Id``). Gateways hand them on
to the clients of ``/v0/ws``, with the stream's sequence numbers as ids.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message
from llmlb.bus.messages.pulls import PullProgress

NodeState = Literal["pending", "registering", "online", "offline"]


class NodeStateChanged(Message):
    """Router → stream: a node joined, changed its state, or left."""

    type: Literal["llmlb.event.node_state_changed.v1"] = "llmlb.event.node_state_changed.v1"
    node_id: str = Field(description="who")
    name: str = Field(description="its host name")
    before: NodeState | None = Field(description="None: first seen")
    after: NodeState = Field(description="state now")
    reason: str = Field(description="why, in words")
    instance: str = Field(default="", description="the process that was the node; empty: none was heard")


class ClusterModelRegistered(Message):
    """Router → stream: a model shall be on nodes."""

    type: Literal["llmlb.event.model_registered.v1"] = "llmlb.event.model_registered.v1"
    model: str = Field(description="its name")
    registered_at: float = Field(description="Unix seconds; tells this registration from earlier ones")
    registered_by: str | None = Field(default=None, description="who did it")
    display_name: str | None = Field(default=None, description="what people call it")
    aliases: tuple[str, ...] = Field(default=(), description="further names that requests may use")
    nodes: tuple[str, ...] | None = Field(default=None, description="ids of the nodes it is meant for; None: every one")
    size_bytes: int | None = Field(default=None, ge=0, description="of all its files; None: not known")
    quantization: str | None = Field(default=None, description="Q4_K_M …")
    conversion_pending: bool = Field(default=False, description="True: no engine runs its format; it is only listed")


class ClusterModelReady(Message):
    """Router → stream: a registered model is whole on a node. Once a registration and node."""

    type: Literal["llmlb.event.model_ready.v1"] = "llmlb.event.model_ready.v1"
    model: str = Field(description="its name")
    registered_at: float = Field(description="of the registration, Unix seconds")
    node_id: str = Field(description="where")
    node_name: str = Field(description="its host name")


class ClusterModelRemoved(Message):
    """Router → stream: a model was taken out of the cluster; nodes remove its files."""

    type: Literal["llmlb.event.model_removed.v1"] = "llmlb.event.model_removed.v1"
    model: str = Field(description="its name")
    registered_at: float = Field(description="of the registration that is gone, Unix seconds")


class ClusterTaskChanged(Message):
    """Router → stream: a download began, or has another status. Progress in between is not kept here."""

    type: Literal["llmlb.event.task_changed.v1"] = "llmlb.event.task_changed.v1"
    id: str = Field(description="<node id>.<task id>, for /v0/tasks/<id>")
    node_id: str = Field(description="where")
    node_name: str = Field(description="its host name")
    task: PullProgress = Field(description="how far it is, as the node told; at most 8 of its files")


ClusterEvent = NodeStateChanged | ClusterModelRegistered | ClusterModelReady | ClusterModelRemoved | ClusterTaskChanged
