"""What routers answer over rpc and at ``/v0``: nodes, models, status, approval."""

from __future__ import annotations

from typing import Literal

import llmlb
from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.messages.router import (
    ApproveNode,
    ClusterModelList,
    ClusterStatus,
    GetStatus,
    ListClusterModels,
    ListNodes,
    NodeApproved,
    NodeList,
)
from llmlb.router.fleet import Fleet
from llmlb.router.history import RequestCount


class RouterControl:
    """The operations, over the fleet and the request count."""

    def __init__(self, fleet: Fleet, requests: RequestCount) -> None:
        self._fleet = fleet
        self._requests = requests

    def register(self, bus: Bus) -> None:
        """Offer them on the bus, in the routers' queue group; before the bus opens."""

        async def nodes(_: ListNodes) -> NodeList:
            return self.nodes()

        async def models(_: ListClusterModels) -> ClusterModelList:
            return self.models()

        async def status(_: GetStatus) -> ClusterStatus:
            return self.status()

        async def approve(request: ApproveNode) -> NodeApproved:
            return await self.approve(request.node)

        queue = subjects.QUEUE_ROUTER
        bus.handle(subjects.router_rpc("nodes"), ListNodes, NodeList, nodes, queue=queue)
        bus.handle(subjects.router_rpc("models"), ListClusterModels, ClusterModelList, models, queue=queue)
        bus.handle(subjects.router_rpc("status"), GetStatus, ClusterStatus, status, queue=queue)
        bus.handle(subjects.router_rpc("approve"), ApproveNode, NodeApproved, approve, queue=queue)

    def nodes(self) -> NodeList:
        return NodeList(nodes=self._fleet.nodes())

    def models(self) -> ClusterModelList:
        return ClusterModelList(models=self._fleet.all_models())

    def status(self) -> ClusterStatus:
        nodes = self._fleet.nodes()
        working = [node for node in nodes if node.state == "online" and not node.suspect]
        wanted = [node for node in nodes if node.state != "pending"]
        health: Literal["healthy", "degraded", "unhealthy"] = "healthy" if len(working) == len(wanted) else "degraded"
        if not working:
            health = "unhealthy"
        gpus = [gpu for node in working for gpu in node.gpus if gpu.memory_total_bytes]
        used = [100 * gpu.memory_used_bytes / gpu.memory_total_bytes for gpu in gpus]
        return ClusterStatus(
            health=health,
            nodes_online=len(working),
            nodes_offline=len(nodes) - len(working),
            models_available=len(self._fleet.list_models()),
            requests_last_hour=self._requests.last_hour,
            requests_running=sum(node.running for node in working),
            vram_percent=sum(used) / len(used) if used else None,
            version=llmlb.__version__,
        )

    async def approve(self, node: str) -> NodeApproved:
        return NodeApproved(node_id=await self._fleet.approve(node))
