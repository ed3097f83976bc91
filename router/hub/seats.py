"""The nodes as models see them: which ones a model is meant for, what they have, and how much room there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmlb.bus.errors import Conflict, InvalidRequest
from llmlb.bus.hub_names import task_id_of, wanted_of
from llmlb.bus.messages.hub import ClusterTask
from llmlb.bus.messages.models import RegisteredModel
from llmlb.bus.messages.pulls import PullProgress
from llmlb.router.fleet import Fleet
from llmlb.router.hub.board import TaskBoard
from llmlb.router.hub.fit import Room
from llmlb.router.hub.states import Seat, name_there


class Seats:
    """Over the fleet and the board; keeps nothing."""

    def __init__(self, fleet: Fleet, board: TaskBoard) -> None:
        self._fleet, self._board = fleet, board

    def of(self, record: RegisteredModel) -> list[Seat]:
        """The approved nodes that a model is meant for, those that are away too, by id."""
        task_id = task_id_of(wanted_of(record.name, record.file))
        known = self._fleet.known()
        found = []
        for node_id in self._approved():
            if record.nodes is not None and node_id not in record.nodes:
                continue
            node = known.get(node_id)
            task = self._board.get(node_id, task_id)
            if node is not None:
                has = name_there(record, node) is not None
            else:  # not heard since this router began: as it said last
                has = task is not None and task.status == "completed" and task.registered_at == record.registered_at
            online = node is not None and self._fleet.members.state(node_id) in ("online", "registering")
            found.append(Seat(node_id, self._name(node_id), online, has, task))
        return found

    def _approved(self) -> Iterable[str]:
        members = self._fleet.members
        heard = {node_id for node_id in self._fleet.known() if members.state(node_id) != "pending"}
        kept = {node_id for node_id, record in members.records().items() if record.approved}
        return sorted(heard | kept)

    def check_approved(self, node_ids: Sequence[str]) -> None:
        """Raises InvalidRequest, naming the first that is not."""
        approved = set(self._approved())
        for node_id in node_ids:
            if node_id not in approved:
                raise InvalidRequest(f"the node {node_id[:12]} is not approved: it gets no models", param="nodes")

    def check_aliases(self, record: RegisteredModel) -> None:
        """Raises Conflict: a node has another model of that name, which would be asked in its place there."""
        repo = record.name.partition(":")[0].lower()
        for alias in record.aliases:
            for node in self._fleet.known().values():
                other = node.own_names.get(alias)
                if other is not None and other.partition(":")[0].lower() != repo:
                    raise Conflict(f"the alias '{alias}' is a name of {other} on {node.beat.name}", param="aliases")

    def is_known(self, node_id: str) -> bool:
        """False for one that was taken out of the cluster."""
        return node_id in self._fleet.known() or node_id in self._fleet.members.records()

    def _name(self, node_id: str) -> str:
        node, record = self._fleet.known().get(node_id), self._fleet.members.record(node_id)
        return node.beat.name if node is not None else record.name if record is not None else node_id[:12]

    def rooms(self, nodes: Sequence[str] | None) -> list[Room]:
        """What the approved nodes have; None: all of them."""
        known = self._fleet.known()
        found = []
        for node_id in self._approved():
            if nodes is not None and node_id not in nodes:
                continue
            if (node := known.get(node_id)) is None:
                found.append(Room(node_id, self._name(node_id)))
                continue
            vram = sum(gpu.memory_total_bytes for gpu in node.beat.gpus)
            memory = max(vram, node.beat.memory_total_bytes or 0) or None
            found.append(Room(node_id, node.beat.name, memory, node.beat.disk_free_bytes, node.beat.engines))
        return found

    def task(self, task: PullProgress) -> ClusterTask:
        """As it is shown: without the diagnostic of its error, which is for logs."""
        if task.error is not None and task.error.detail is not None:
            task = task.model_copy(update={"error": task.error.model_copy(update={"detail": None})})
        online = task.node_id in self._fleet.known() and self._fleet.members.state(task.node_id) != "offline"
        return ClusterTask(
            id=f"{task.node_id}.{task.task_id}",
            node_id=task.node_id,
            node_name=self._name(task.node_id),
            online=online,
            task=task,
        )
