"""The cluster as a router sees it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message, Part
from llmlb.bus.messages.events import NodeState
from llmlb.bus.messages.nodes import GpuReading


class NodeView(Part):
    """One node of the cluster."""

    node_id: str = Field(description="who")
    name: str = Field(description="host name")
    gateway: str = Field(description="host:port of its own gateway")
    state: NodeState = Field(description="where it is in its life")
    suspect: bool = Field(description="True: three heartbeats missed, gets no new work")
    draining: bool = Field(description="True: finishing, gets no new work")
    version: str = Field(description="llmlb's version there")
    models: tuple[str, ...] = Field(description="names of its models")
    loaded_models: tuple[str, ...] = Field(description="those in memory")
    models_ready: int = Field(description="models assigned to it that are whole")
    models_total: int = Field(description="models assigned to it")
    running: int = Field(description="requests on it")
    slots: int = Field(description="slots of its loaded models")
    gpus: tuple[GpuReading, ...] = Field(description="empty without a GPU")
    cpu_percent: float | None = Field(description="of the machine")
    memory_total_bytes: int | None = Field(description="RAM in all")
    memory_available_bytes: int | None = Field(description="RAM that can be had")
    uptime_s: float = Field(description="since its process started")
    last_heartbeat_age_s: float = Field(description="seconds since the last heartbeat")
    metrics_stale: bool = Field(description="True: the readings are older than 30 s")
    labels: tuple[str, ...] = Field(default=(), description="its own and those an admin gave it")
    rejected: bool = Field(default=False, description="True: an admin refused it")
    problem: str | None = Field(default=None, description="why it gets no work, when somebody has to do something")


class ListNodes(Message):
    """Anybody → routers: which nodes are there?"""

    type: Literal["llmlb.router.list_nodes.v1"] = "llmlb.router.list_nodes.v1"


class NodeList(Message):
    """Router → caller: every node known, by name."""

    type: Literal["llmlb.router.nodes.v1"] = "llmlb.router.nodes.v1"
    nodes: tuple[NodeView, ...] = Field(description="by name, then id")


class ClusterModel(Part):
    """One model over all nodes."""

    name: str = Field(description="the model's name")
    aliases: tuple[str, ...] = Field(default=(), description="short names")
    also: tuple[str, ...] = Field(default=(), description="longer names it answers to, such as owner/model:QUANT")
    nodes: int = Field(description="nodes that can run it now")
    loaded: int = Field(description="nodes that have it in memory")
    status: Literal["available", "unavailable"] = Field(description="available: at least one node can run it now")
    created_at: float = Field(description="Unix seconds, the oldest copy")


class ListClusterModels(Message):
    """Anybody → routers: which models are there?"""

    type: Literal["llmlb.router.list_models.v1"] = "llmlb.router.list_models.v1"


class ClusterModelList(Message):
    """Router → caller: every model known, by name."""

    type: Literal["llmlb.router.models.v1"] = "llmlb.router.models.v1"
    models: tuple[ClusterModel, ...] = Field(description="by name")


class GetStatus(Message):
    """Anybody → routers: how is the cluster?"""

    type: Literal["llmlb.router.get_status.v1"] = "llmlb.router.get_status.v1"


class ClusterStatus(Message):
    """Router → caller: the cluster in numbers."""

    type: Literal["llmlb.router.status.v1"] = "llmlb.router.status.v1"
    health: Literal["healthy", "degraded", "unhealthy"] = Field(
        description="healthy: every approved node online; degraded: some; unhealthy: none"
    )
    nodes_online: int = Field(description="nodes online")
    nodes_offline: int = Field(description="nodes known and not online")
    models_available: int = Field(description="models at least one node can run now")
    requests_last_hour: int = Field(description="requests finished in the last 3600 s")
    requests_running: int = Field(description="requests on the nodes now")
    vram_percent: float | None = Field(description="mean VRAM in use over all GPUs; None without a GPU")
    version: str = Field(description="the router's version")
    requests_waiting: int = Field(default=0, ge=0, description="requests in this gateway's queue")
    longest_wait_s: float = Field(default=0.0, ge=0, description="how long the first of them has waited")


class ApproveNode(Message):
    """Admin → routers: this node may work."""

    type: Literal["llmlb.router.approve.v1"] = "llmlb.router.approve.v1"
    node: str = Field(description="node id, or a unique prefix of it")


class NodeApproved(Message):
    """Router → caller: done."""

    type: Literal["llmlb.router.approved.v1"] = "llmlb.router.approved.v1"
    node_id: str = Field(description="the node")


class ChangeNode(Message):
    """Admin → routers: reject it, drain it, put it back to work, or label it."""

    type: Literal["llmlb.router.change_node.v1"] = "llmlb.router.change_node.v1"
    node: str = Field(description="node id, or a unique prefix of it")
    action: Literal["reject", "drain", "undrain", "label"] = Field(description="what to do")
    labels: tuple[str, ...] = Field(default=(), description="for label: what an admin gives it from now on")


class RemoveNode(Message):
    """Admin → routers: forget this node. One that still runs comes back as new."""

    type: Literal["llmlb.router.remove_node.v1"] = "llmlb.router.remove_node.v1"
    node: str = Field(description="node id, or a unique prefix of it")


class NodeChanged(Message):
    """Router → caller: done."""

    type: Literal["llmlb.router.node_changed.v1"] = "llmlb.router.node_changed.v1"
    node_id: str = Field(description="the node")


class MakeJoinToken(Message):
    """Admin → routers: a token with which nodes come in without being approved one by one."""

    type: Literal["llmlb.router.make_join_token.v1"] = "llmlb.router.make_join_token.v1"
    name: str = Field(default="", description="what it is for, for people")
    uses: int | None = Field(default=None, ge=1, description="nodes it lets in; None: any number")
    expires_in_s: float | None = Field(default=None, gt=0, description="seconds; None: never")


class JoinTokenMade(Message):
    """Router → caller: the token, shown this once; its digest is what is kept."""

    type: Literal["llmlb.router.join_token_made.v1"] = "llmlb.router.join_token_made.v1"
    token: str = Field(description="what LLMLB_JOIN_TOKEN of a node is set to")
    token_id: str = Field(description="first 12 hex digits of its digest")


class JoinToken(Message):
    """Router → bucket llmlb-settings, key ``join.<token_id>``: a token's digest and what it allows."""

    type: Literal["llmlb.settings.join_token.v1"] = "llmlb.settings.join_token.v1"
    digest: str = Field(description="sha256 of the token, hex")
    name: str = Field(default="", description="what it is for")
    uses_left: int | None = Field(default=None, description="None: any number")
    expires_at: float | None = Field(default=None, description="Unix seconds of the routers' clocks; None: never")
    nodes: tuple[str, ...] = Field(default=(), description="those it let in, when its uses are limited")
