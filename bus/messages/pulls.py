"""Pulls: the task, how far it is, and what can be asked of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message, Part
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.models import ModelManifest

TaskStatus = Literal["pending", "downloading", "completed", "failed", "cancelled"]
TaskPhase = Literal["waiting", "manifest", "downloading", "verifying", "writing", "done"]
PullOrigin = Literal["user", "sync"]


class PullTask(Message):
    """Anybody → stream LLMLB_PULLS, subject of one node: bring this model onto your disk.

    Redelivered until the node acks it: when the model is whole, the task was cancelled, or it failed for good.
    """

    type: Literal["llmlb.pull.task.v1"] = "llmlb.pull.task.v1"
    task_id: str = Field(description="digest of the model's canonical name, 16 hex digits: one task a model and node")
    model: str = Field(description="owner/model, owner/model:QUANT or an address on the hub")
    origin: PullOrigin = Field(default="user", description="sync: because it is registered for the node")
    manifest: ModelManifest | None = Field(default=None, description="its files; None: the node asks the hub")
    registered_at: float | None = Field(default=None, description="of the registration it is for, as stored there")


class FileProgress(Part):
    """One file of a model on its way."""

    name: str = Field(description="its name in the model's folder")
    digest: str | None = Field(default=None, description="sha256 as the hub lists it, hex")
    total_bytes: int = Field(ge=0, description="its size")
    done_bytes: int = Field(ge=0, description="bytes on the disk")
    verified_bytes: int = Field(default=0, ge=0, description="bytes whose digest is computed")


class PullProgress(Message):
    """Node → stream LLMLB_PROGRESS, last value kept: how far a pull is. At least one a second while bytes flow."""

    type: Literal["llmlb.pull.progress.v1"] = "llmlb.pull.progress.v1"
    task_id: str = Field(description="the task")
    node_id: str = Field(description="where")
    model: str = Field(description="canonical name of what was asked for")
    origin: PullOrigin = Field(default="user", description="who asked: a user, or the registry")
    status: TaskStatus = Field(description="completed, failed and cancelled are final")
    phase: TaskPhase = Field(description="what it is doing")
    files: tuple[FileProgress, ...] = Field(default=(), description="empty until the manifest is read")
    total_bytes: int = Field(default=0, ge=0, description="bytes of all files; 0 until the manifest is read")
    downloaded_bytes: int = Field(default=0, ge=0, description="bytes of them on the disk")
    speed_bps: int = Field(default=0, ge=0, description="bytes a second over the last seconds")
    eta_s: float | None = Field(default=None, description="seconds left at that speed; None while unknown")
    note: str | None = Field(default=None, description="what it waits for, or why it began anew")
    name: str | None = Field(default=None, description="the model's name on the node, when completed")
    alias: str | None = Field(default=None, description="its short name, when completed")
    error: WireError | None = Field(default=None, description="why it failed")
    registered_at: float | None = Field(default=None, description="of the registration it is for, as stored there")
    started_at: float = Field(description="Unix seconds")


class StartPull(Message):
    """Anybody → a node: pull this model, or attach to the pull that is running."""

    type: Literal["llmlb.pull.start.v1"] = "llmlb.pull.start.v1"
    model: str = Field(description="owner/model, owner/model:QUANT or an address on the hub")


class PullStarted(Message):
    """Node → caller: the task is stored on the bus."""

    type: Literal["llmlb.pull.started.v1"] = "llmlb.pull.started.v1"
    task: PullProgress = Field(description="how far it is now")
    attached: bool = Field(default=False, description="True: it was running already")


class ListTasks(Message):
    """Anybody → a node: which pulls have you, or had you lately?"""

    type: Literal["llmlb.pull.list.v1"] = "llmlb.pull.list.v1"
    task_id: str | None = Field(default=None, description="only this one; RequestError when there is none")


class TaskList(Message):
    """Node → caller: its tasks, newest first."""

    type: Literal["llmlb.pull.tasks.v1"] = "llmlb.pull.tasks.v1"
    tasks: tuple[PullProgress, ...] = Field(description="running ones and the last of those that are over")


class CancelTask(Message):
    """Anybody → a node: give this pull up."""

    type: Literal["llmlb.pull.cancel.v1"] = "llmlb.pull.cancel.v1"
    task: str = Field(description="task id, or the name of the model as for a pull")
    purge: bool = Field(default=False, description="True: drop the partial files too")


class TaskCancelled(Message):
    """Node → caller: it is over, and what it left."""

    type: Literal["llmlb.pull.cancelled.v1"] = "llmlb.pull.cancelled.v1"
    task: PullProgress = Field(description="its last state")
    kept_bytes: int = Field(default=0, ge=0, description="bytes of partial files that stay for another pull")
