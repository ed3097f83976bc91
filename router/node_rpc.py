"""The operations of one node, called over the bus: what that node's own gateway offers at ``/v0``."""

from __future__ import annotations

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.messages.models import (
    ListModels,
    ListRunning,
    ModelDetails,
    ModelList,
    ModelStopped,
    RunningList,
    ShowModel,
    StopModel,
)

STOP_TIMEOUT_S = 60.0
"""A stop waits for the answers that are running."""


class NodeRpc:
    """Each method raises what the node raised, NodeLost, DeadlineExceeded or BusDown."""

    def __init__(self, bus: Bus, node_id: str) -> None:
        self._bus = bus
        self._node_id = node_id

    async def list_models(self) -> ModelList:
        return await self._bus.call(subjects.node_rpc(self._node_id, "list"), ListModels(), ModelList)

    async def show(self, model: str) -> ModelDetails:
        return await self._bus.call(subjects.node_rpc(self._node_id, "show"), ShowModel(model=model), ModelDetails)

    async def ps(self) -> RunningList:
        return await self._bus.call(subjects.node_rpc(self._node_id, "ps"), ListRunning(), RunningList)

    async def stop(self, model: str) -> ModelStopped:
        return await self._bus.call(
            subjects.node_rpc(self._node_id, "stop"), StopModel(model=model), ModelStopped, timeout_s=STOP_TIMEOUT_S
        )
