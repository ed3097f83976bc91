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
    loaded: tuple[LoadedModel, ...] = Field(default=(), description="models in memory")
    running: int = Field(default=0, ge=0, description="requests on the node, over all models")
    gpus: tuple[GpuReading, ...] = Field(default=(), description="empty without a GPU")
    cpu_percent: float | None = Field(default=None, description="of the whole machine, 0 to 100")
    memory_total_bytes: int | None = Field(default=None, description="RAM in all")
    memory_available_bytes: int | None = Field(default=None, description="RAM that can be had")


class NodeRecord(Message):
    """Router → bucket llmlb-nodes, key = node id: what outlives every process."""

    type: Literal["llmlb.node.record.v1"] = "llmlb.node.record.v1"
    node_id: str = Field(description="who")
    name: str = Field(description="host name when last seen")
    approved: bool = Field(description="True: may be given work")
    approved_by: str | None = Field(default=None, description="same-machine or admin")
    first_seen_at: float = Field(description="Unix seconds")
    gateway: str = Field(default="", description="host:port of its gateway when last seen")
