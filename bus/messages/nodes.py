"""A node's heartbeat, and its durable record."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message, Part


class GpuReading(Part):
    """One GPU, now."""

    name: str = Field(description="as the driver names it")
    memory_total_bytes: int = Field(ge=0, description="VRAM in all")
    memory_used_bytes: int = Field(ge=0, description="VRAM in use")
    temperature_c: float | None = Field(default=None, description="°C")
    utilization_percent: float | None = Field(default=None, description="0 to 100")


class LoadedModel(Part):
    """One loaded model as placement needs it."""

    name: str = Field(description="the model's name")
    ready: bool = Field(description="False while it loads")
    slots: int = Field(ge=0, description="requests it can run at once; 0 while unknown")
    running: int = Field(ge=0, description="requests running or waiting on it")
    prefill_tps: float | None = Field(default=None, description="prompt tokens a second, measured; None: not yet")
    decode_tps: float | None = Field(default=None, description="tokens a second of one answer, measured; None: not yet")
    load_s: float | None = Field(default=None, description="seconds its loading took, or takes")
    same_answer: bool = Field(
        default=False, description="True: found out that load, cache and migration do not change an answer"
    )


class Heartbeat(Message):
    """Node → everybody, each second, and at once when something changes: I am here, and this is my load."""

    type: Literal["llmlb.node.heartbeat.v1"] = "llmlb.node.heartbeat.v1"
    node_id: str = Field(description="who")
    instance: str = Field(description="made anew at each start of the process, 12 hex digits")
    version: str = Field(description="llmlb's version on the node")
    name: str = Field(description="host name")
    machine: str = Field(description="digest that is equal for processes of one machine")
    gateway: str = Field(description="host:port of the node's own gateway, as seen from its machine")
    uptime_s: float = Field(ge=0, description="since the process started")
    draining: bool = Field(default=False, description="True: send nothing new")
    leaving: bool = Field(default=False, description="True: this is the last one")
    inventory: int = Field(description="revision of its list of models; ask rpc.list when it changes")
    models_ready: int = Field(ge=0, description="models assigned to it that are whole on its disk")
    models_total: int = Field(ge=0, description="models assigned to it")
    loaded: tuple[LoadedModel, ...] = Field(default=(), description="models in memory, or on their way there")
    pulling: tuple[str, ...] = Field(default=(), description="models whose files are on their way")
    labels: tuple[str, ...] = Field(default=(), description="labels its own settings give it")
    engines: tuple[str, ...] = Field(default=(), description="llama.cpp, vllm; empty: an old version, only the first")
    disk_free_bytes: int | None = Field(default=None, ge=0, description="room for models; None: not known")
    disk_total_bytes: int | None = Field(default=None, ge=0, description="of the disk for models; None: not known")
    join_token: str | None = Field(
        default=None, description="proof of a join token (bus/join.py), which lets it in; sent until approved"
    )
    running: int = Field(default=0, ge=0, description="requests on the node, over all models")
    gpus: tuple[GpuReading, ...] = Field(default=(), description="empty without a GPU")
    cpu_percent: float | None = Field(default=None, description="of the whole machine, 0 to 100")
    memory_total_bytes: int | None = Field(default=None, description="RAM in all")
    memory_available_bytes: int | None = Field(default=None, description="RAM that can be had")
    beating_s: float | None = Field(
        default=None, ge=0, description="since its first heartbeat, or the last pause of three; None: old version"
    )
    problem: str | None = Field(default=None, description="what somebody has to mend there")


class IdentifyNode(Message):
    """Node → whoever has its id: is somebody there? Asked once, before it takes work."""

    type: Literal["llmlb.node.identify.v1"] = "llmlb.node.identify.v1"
    node_id: str = Field(description="the id of both")
    instance: str = Field(description="of the one that asks")
    name: str = Field(description="host name of the one that asks")
    gateway: str = Field(description="host:port of its gateway")


class NodeIdentified(Message):
    """Node → the one that asked: I am this node."""

    type: Literal["llmlb.node.identified.v1"] = "llmlb.node.identified.v1"
    node_id: str = Field(description="the id of both")
    instance: str = Field(description="of the one that answers")
    name: str = Field(description="its host name")
    gateway: str = Field(description="host:port of its gateway")


class NodeRecord(Message):
    """Router → bucket llmlb-nodes, key = node id: what outlives every process."""

    type: Literal["llmlb.node.record.v1"] = "llmlb.node.record.v1"
    node_id: str = Field(description="who")
    name: str = Field(description="host name when last seen")
    approved: bool = Field(description="True: may be given work")
    approved_by: str | None = Field(default=None, description="same-machine, token or admin")
    rejected: bool = Field(default=False, description="True: an admin refused it; it stays out until approved")
    drained: bool = Field(default=False, description="True: an admin took it out of work for a while")
    labels: tuple[str, ...] = Field(default=(), description="labels an admin gave it")
    first_seen_at: float = Field(description="Unix seconds")
    gateway: str = Field(default="", description="host:port of its gateway when last seen")
    online_instance: str = Field(
        default="", description="instance that was online: it stays so for a router that starts later"
    )
