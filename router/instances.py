"""Two processes with one node id, as a copied home directory makes them: which of them is the node. Pure.

A node that starts again has the same id and another instance, and its old instance is silent from then on. So a new
instance is believed at once, and only when the old one is heard *again* there are two: the one that was there first is
the node, and what the other one says is ignored until the first has been silent for three heartbeats. The same for an
instance that comes back after a silence and finds another one in its place: that one is the node.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmlb.router.membership import SUSPECT_AFTER_S


@dataclass(slots=True)
class _Heard:
    instance: str
    last: float


@dataclass(slots=True)
class _Node:
    is_it: _Heard
    before: _Heard | None = None
    """The instance it took over from, when that was not silent for long."""
    other: _Heard | None = None
    """The second one, ignored."""


class Instances:
    """Which instance of each node is heard. ``now``: seconds of a monotonic clock."""

    def __init__(self, *, silent_after_s: float = SUSPECT_AFTER_S) -> None:
        self._silent_after_s = silent_after_s
        self._nodes: dict[str, _Node] = {}

    def heard(self, node_id: str, instance: str, now: float) -> bool:
        """A heartbeat came. False: of a second one, to be ignored."""
        node = self._nodes.get(node_id)
        if node is None:
            self._nodes[node_id] = _Node(_Heard(instance, now))
            return True
        if instance == node.is_it.instance:
            node.is_it.last = now
            return True
        silent = now - node.is_it.last >= self._silent_after_s
        before, node.before = node.before, None
        if before is not None and before.instance == instance:
            if now - before.last < self._silent_after_s:
                # The one from before lives: it was first, and what took its place is the second one.
                node.is_it, node.other = _Heard(instance, now), node.is_it
                return True
            node.other = before
        if not silent and node.other is not None and instance == node.other.instance:
            node.other.last = now
            return False
        if silent:
            node.other = node.is_it  # should it come back, it finds its place taken
        else:
            node.before = node.is_it
        node.is_it = _Heard(instance, now)
        return True

    def is_second(self, node_id: str, instance: str) -> bool:
        """True for every instance but the one that is the node, once that is known."""
        node = self._nodes.get(node_id)
        return node is not None and instance != node.is_it.instance

    def left(self, node_id: str, instance: str) -> None:
        """An instance said goodbye."""
        node = self._nodes.get(node_id)
        if node is None:
            return
        if node.other is not None and node.other.instance == instance:
            node.other = None
        if node.before is not None and node.before.instance == instance:
            node.before = None
        if node.is_it.instance == instance:
            del self._nodes[node_id]

    def doubled(self, node_id: str, now: float) -> bool:
        """True: a second one was heard lately."""
        node = self._nodes.get(node_id)
        return (
            node is not None
            and node.other is not None
            and node.other.instance != node.is_it.instance
            and now - node.other.last < self._silent_after_s
        )

    def forget(self, node_id: str) -> None:
        self._nodes.pop(node_id, None)
