"""Tells what happens to models and downloads, once however many routers see it; and what a router that died did not.

What is in the stream is known from the log, so that a router that has just begun, and sees all there is for the first
time, tells only what is new: what changed within the last hour and is not in the stream.
"""

from __future__ import annotations

import time
from typing import TypeVar

from llmlb.bus.messages.base import Message
from llmlb.bus.messages.events import (
    ClusterModelReady,
    ClusterModelRegistered,
    ClusterModelRemoved,
    ClusterTaskChanged,
    NodeStateChanged,
)
from llmlb.bus.messages.models import RegisteredModel
from llmlb.bus.messages.pulls import PullProgress
from llmlb.router.fleet import Fleet, Node
from llmlb.router.hub.hub import ModelHub
from llmlb.router.hub.states import name_there
from llmlb.router.live_log import EventLog, Told

RECENT_S = 3600.0
"""What is older is no news for a router that has just begun."""
MOST_TASKS, MOST_NODES = 50_000, 10_000
UPWARDS = ("pending", "registering", "online")
"""The states of a node on its way in."""
Key = tuple[str, str]
K = TypeVar("K")
V = TypeVar("V")


class Teller:
    """:meth:`start` once the fleet and the models have begun."""

    def __init__(self, fleet: Fleet, hub: ModelHub, source: EventLog) -> None:
        self._fleet, self._hub, self._log = fleet, hub, source
        self._announcer = fleet.members.announcer
        self._models: dict[str, tuple[float, bool]] = {}
        """The last that was told of each model: its registration, and whether that is gone."""
        self._ready: dict[Key, float] = {}
        """(model, node) → the registration for which it was told."""
        self._told_tasks: dict[str, tuple[str, float]] = {}
        self._heard_tasks: dict[str, tuple[str, float]] = {}
        """Status and beginning of each download, as told, and as heard last."""
        self._nodes: dict[str, NodeStateChanged] = {}
        """The last that was told of each node."""
        self._left: dict[str, float] = {}
        """When a node was told to be offline last, as the stream has it: the same for every router."""
        self._looked: set[str] = set()
        """Nodes whose models were seen once."""
        self._begun = False
        source.on_event.append(self._on_told)
        self._announcer.told, self._announcer.stored = self.is_told, self._on_stored
        self._announcer.since, self._announcer.known = self._since, source.known

    def start(self) -> None:
        """Begin to tell."""
        self._log.on_loaded.append(self._catch_up)
        self._hub.registry.on_change.append(self._on_model)
        self._hub.board.on_change.append(self.on_task)
        self._fleet.on_models.append(self._on_node)
        if self._log.loaded:
            self._catch_up()

    # What is in the stream

    def _on_told(self, told: Told) -> None:
        event = told.event
        self._on_stored(event)
        if isinstance(event, NodeStateChanged) and event.after == "offline":
            _put(self._left, event.node_id, event.sent_at, MOST_NODES)
        if isinstance(event, NodeStateChanged) and self._begun and event.after in ("registering", "online"):
            if event.before == "pending":
                self._looked.add(event.node_id)  # let in: what it has counts from now on
            self._on_node(event.node_id)

    def _on_stored(self, event: Message) -> None:
        if isinstance(event, ClusterModelRegistered):
            self._models[event.model] = (event.registered_at, False)
        elif isinstance(event, ClusterModelRemoved):
            self._models[event.model] = (event.registered_at, True)
            for key in [key for key in self._ready if key[0] == event.model]:
                del self._ready[key]
        elif isinstance(event, ClusterModelReady):
            self._ready[event.model, event.node_id] = event.registered_at
        elif isinstance(event, ClusterTaskChanged):
            _put(self._told_tasks, event.id, _step(event.task), MOST_TASKS)
            if event.id not in self._heard_tasks:
                _put(self._heard_tasks, event.id, _step(event.task), MOST_TASKS)
        elif isinstance(event, NodeStateChanged):
            _put(self._nodes, event.node_id, event, MOST_NODES)

    def is_told(self, event: Message) -> bool:
        """Whether the stream has it."""
        if isinstance(event, ClusterModelRegistered):
            return self._models.get(event.model, (0.0, False))[0] == event.registered_at
        if isinstance(event, ClusterModelRemoved):
            return self._models.get(event.model) == (event.registered_at, True)
        if isinstance(event, ClusterModelReady):
            return self._ready.get((event.model, event.node_id)) == event.registered_at
        if isinstance(event, ClusterTaskChanged):
            return self._told_tasks.get(event.id) == _step(event.task)
        if isinstance(event, NodeStateChanged):
            before = self._nodes.get(event.node_id)
            return before is not None and is_behind(event, before)
        return False

    def _since(self, event: Message) -> str:
        """A node that goes and comes back at once takes the same steps again: they differ by when it went."""
        return str(self._left.get(event.node_id, "")) if isinstance(event, NodeStateChanged) else ""

    def task_is_told(self, task_id: str, task: PullProgress) -> bool:
        """Whether the stream has the status that a download has now."""
        return self._told_tasks.get(task_id) == _step(task)

    def _is_recent(self, at: float) -> bool:
        entries = self._log.entries()
        oldest = entries[0].event.sent_at if entries and self._log.floor else 0.0
        return at > max(time.time() - RECENT_S, oldest)

    def _catch_up(self) -> None:
        """The stream is read: tell what it lacks."""
        self._begun = True
        registered = self._hub.registry.all()
        for record in list(registered.values()):
            self._on_model(record.name, None, record)
        if self._hub.registry.loaded:
            gone = [(name, at) for name, (at, over) in self._models.items() if not over and name not in registered]
            for name, at in gone:
                self._tell_removed(name, at)
        for task in reversed(self._hub.board.all()):
            self.on_task(task)
        for node_id in list(self._fleet.known()):
            self._on_node(node_id)

    # What happens

    def _on_model(self, name: str, before: RegisteredModel | None, after: RegisteredModel | None) -> None:
        if not self._begun:
            return
        if before is not None and (after is None or after.registered_at != before.registered_at):
            self._tell_removed(name, before.registered_at)
        if after is None:
            return
        if (before is None or after.registered_at != before.registered_at) and self._is_recent(after.registered_at):
            self._tell_registered(after)
        for node_id, node in self._fleet.known().items():
            self._look(node_id, node, after)

    def _on_node(self, node_id: str) -> None:
        """A node has said what it has, or was let in."""
        node = self._fleet.known().get(node_id)
        if not self._begun or node is None or node.inventory is None:
            return
        for record in self._hub.registry.all().values():
            self._look(node_id, node, record)
        if self._fleet.members.state(node_id) in ("registering", "online"):
            self._looked.add(node_id)

    def _look(self, node_id: str, node: Node, record: RegisteredModel) -> None:
        if node.inventory is None or self._ready.get((record.name, node_id)) == record.registered_at:
            return
        if record.nodes is not None and node_id not in record.nodes:
            return
        if self._fleet.members.state(node_id) not in ("registering", "online"):
            return
        there = name_there(record, node)
        if there is None or not (
            node_id in self._looked or self._is_news(node_id, node.models[there].created_at, record)
        ):
            return
        self._announcer.tell(
            "model",
            ClusterModelReady(
                model=record.name, registered_at=record.registered_at, node_id=node_id, node_name=node.beat.name
            ),
            f"ready.{record.name}.{node_id}.{record.registered_at}",
        )

    def _is_news(self, node_id: str, created_at: float, record: RegisteredModel) -> bool:
        """Of a node that is seen for the first time: whether it can have been told before this router began."""
        kept = self._fleet.members.record(node_id)
        first_seen_at = time.time() if kept is None else kept.first_seen_at
        return any(self._is_recent(at) for at in (created_at, record.registered_at, first_seen_at))

    def on_task(self, task: PullProgress) -> None:
        """A download was told of."""
        task_id = f"{task.node_id}.{task.task_id}"
        step = _step(task)
        if not self._begun or self._heard_tasks.get(task_id) == step:
            return
        first = task_id not in self._heard_tasks
        _put(self._heard_tasks, task_id, step, MOST_TASKS)
        if first and not self._is_recent(task.sent_at):
            _put(self._told_tasks, task_id, step, MOST_TASKS)
            return
        self._announcer.tell("task", self.task_event(task), f"task.{task_id}.{task.status}.{task.sent_at}")

    def task_event(self, task: PullProgress) -> ClusterTaskChanged:
        shown = self._hub.shown_task(task)
        return ClusterTaskChanged(id=shown.id, node_id=shown.node_id, node_name=shown.node_name, task=shown.task)

    def _tell_registered(self, record: RegisteredModel) -> None:
        manifest = record.manifest
        event = ClusterModelRegistered(
            model=record.name,
            registered_at=record.registered_at,
            registered_by=record.registered_by,
            display_name=record.display_name,
            aliases=record.aliases,
            nodes=record.nodes,
            size_bytes=None if manifest is None else manifest.size_bytes,
            quantization=None if manifest is None else manifest.quantization,
            conversion_pending=record.conversion_pending,
        )
        self._announcer.tell("model", event, f"registered.{record.name}.{record.registered_at}")

    def _tell_removed(self, name: str, registered_at: float) -> None:
        event = ClusterModelRemoved(model=name, registered_at=registered_at)
        self._announcer.tell("model", event, f"removed.{name}.{registered_at}")


def _step(task: PullProgress) -> tuple[str, float]:
    return task.status, task.started_at


def is_behind(event: NodeStateChanged, told: NodeStateChanged) -> bool:
    """Whether somebody sees only now what was told of a node: a slower router, or one that has just begun.

    To that one every node is new: it comes from nowhere, step by step, to the state that it has for everybody else.
    """
    if event.instance and told.instance and event.instance != told.instance:
        return False
    if event.after == told.after:
        return True
    if event.before == told.after or event.after not in UPWARDS or told.after not in UPWARDS:
        return False
    return UPWARDS.index(event.after) < UPWARDS.index(told.after)


def _put(into: dict[K, V], key: K, value: V, most: int) -> None:
    """The oldest go first."""
    into.pop(key, None)
    into[key] = value
    if len(into) > most:
        del into[next(iter(into))]
