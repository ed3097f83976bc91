"""What routers answer over rpc and at ``/v0``: nodes, models, status; and what admins decide about nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import llmlb
from llmlb.bus import labels, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.router import (
    ApproveNode,
    ChangeNode,
    ClusterModelList,
    ClusterStatus,
    GetStatus,
    JoinTokenMade,
    ListClusterModels,
    ListNodes,
    MakeJoinToken,
    NodeApproved,
    NodeChanged,
    NodeList,
    RemoveNode,
)
from llmlb.router.fleet import Fleet
from llmlb.router.history import RequestCount


class RouterControl:
    """The operations, over the fleet and the request count."""

    def __init__(
        self,
        fleet: Fleet,
        requests: RequestCount,
        waiting: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
    ) -> None:
        """``waiting``: (requests in the queue of this gateway, seconds the first of them has waited)."""
        self._fleet = fleet
        self._requests = requests
        self._waiting = waiting

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

        async def change_node(request: ChangeNode) -> NodeChanged:
            return await self.change(request)

        async def remove_node(request: RemoveNode) -> NodeChanged:
            return await self.remove(request.node)

        async def make_join_token(request: MakeJoinToken) -> JoinTokenMade:
            return await self.make_join_token(request)

        queue, rpc = subjects.QUEUE_ROUTER, subjects.router_rpc
        bus.handle(rpc("change_node"), ChangeNode, NodeChanged, change_node, queue=queue)
        bus.handle(rpc("remove_node"), RemoveNode, NodeChanged, remove_node, queue=queue)
        bus.handle(rpc("make_join_token"), MakeJoinToken, JoinTokenMade, make_join_token, queue=queue)
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
        waiting, longest_wait_s = self._waiting()
        return ClusterStatus(
            health=health,
            nodes_online=len(working),
            nodes_offline=len(nodes) - len(working),
            models_available=len(self._fleet.list_models()),
            requests_last_hour=self._requests.last_hour,
            requests_running=sum(node.running for node in working),
            vram_percent=sum(used) / len(used) if used else None,
            version=llmlb.__version__,
            requests_waiting=waiting,
            longest_wait_s=longest_wait_s,
        )

    async def approve(self, node: str) -> NodeApproved:
        """It may work. Raises NodeUnknown, InvalidRequest, BusDown, Conflict, as all below."""
        return NodeApproved(node_id=await self._fleet.approve(node))

    async def change(self, request: ChangeNode) -> NodeChanged:
        """Reject it, drain it, put it back to work, or label it."""
        updates: dict[str, dict[str, object]] = {
            "reject": {"approved": False, "approved_by": None, "rejected": True},
            "drain": {"drained": True},
            "undrain": {"drained": False},
            "label": {"labels": _checked(request.labels)},
        }
        return NodeChanged(node_id=await self._fleet.members.change(request.node, **updates[request.action]))

    async def remove(self, node: str) -> NodeChanged:
        """Forget it. One that still runs is new with its next heartbeat."""
        return NodeChanged(node_id=await self._fleet.members.remove(node))

    async def make_join_token(self, request: MakeJoinToken) -> JoinTokenMade:
        """A token that lets nodes in."""
        return await self._fleet.members.tokens.make(request)


def _checked(given: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return labels.checked(given)
    except ValueError as error:
        raise InvalidRequest(str(error), param="labels") from error
