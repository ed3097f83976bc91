"""The operations of one node, called over the bus: what that node's own gateway offers at ``/v0``."""

from __future__ import annotations

from typing import TypeVar

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.models import (
    ListModels,
    ListRunning,
    ModelDetails,
    ModelList,
    ModelRemoved,
    ModelStopped,
    RemoveModel,
    RunningList,
    ShowModel,
    StopModel,
)
from llmlb.bus.messages.pulls import CancelTask, ListTasks, PullStarted, StartPull, TaskCancelled, TaskList

STOP_TIMEOUT_S = 60.0
"""A stop waits for the answers that are running."""
CANCEL_TIMEOUT_S = 20.0
"""A cancelled pull may wait for a thread that is asking the hub."""


R = TypeVar("R", bound=Message)


class NodeRpc:
    """Each method raises what the node raised, NodeLost, DeadlineExceeded or BusDown."""

    def __init__(self, bus: Bus, node_id: str) -> None:
        self._bus = bus
        self._node_id = node_id

    async def list_models(self) -> ModelList:
        return await self._call("list", ListModels(), ModelList)

    async def show(self, model: str) -> ModelDetails:
        return await self._call("show", ShowModel(model=model), ModelDetails)

    async def ps(self) -> RunningList:
        return await self._call("ps", ListRunning(), RunningList)

    async def stop(self, model: str) -> ModelStopped:
        return await self._call("stop", StopModel(model=model), ModelStopped, STOP_TIMEOUT_S)

    async def remove(self, model: str) -> ModelRemoved:
        return await self._call("remove", RemoveModel(model=model), ModelRemoved, STOP_TIMEOUT_S)

    async def pull(self, model: str) -> PullStarted:
        return await self._call("pull", StartPull(model=model), PullStarted)

    async def tasks(self, task_id: str | None = None) -> TaskList:
        return await self._call("tasks", ListTasks(task_id=task_id), TaskList)

    async def cancel_task(self, task: str, *, purge: bool) -> TaskCancelled:
        return await self._call("cancel_task", CancelTask(task=task, purge=purge), TaskCancelled, CANCEL_TIMEOUT_S)

    async def _call(self, op: str, request: Message, answer: type[R], timeout_s: float = 5.0) -> R:
        return await self._bus.call(subjects.node_rpc(self._node_id, op), request, answer, timeout_s=timeout_s)
