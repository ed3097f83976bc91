"""Where a request goes: a pure function over a snapshot.

The cost of a node is the share of its slots that would be taken with this request on it, plus a charge when the model
is not in memory there: an idle node with the model loaded comes first, and a cold node is woken once the warm ones
are half busy. Among equals the one that was picked longest ago is next, so equal nodes share a burst evenly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

COLD_COST = 0.5
"""A cold model costs as much as half of the slots being taken."""
ASSUMED_SLOTS = 4
"""Of a model that is not loaded, so that its slots are not known yet."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node that could take the request."""

    node_id: str
    slots: int
    """Of the model there; 0 while unknown."""
    running: int
    """Requests on the model there, waiting ones included."""
    loaded: bool
    picked: int
    """When it was picked last, as a counter; 0: never."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The decision, and why."""

    node_id: str
    reason: str


def cost(candidate: Candidate) -> float:
    """Share of slots taken with one more request, above 1 when it would wait; plus COLD_COST when not loaded."""
    slots = candidate.slots or ASSUMED_SLOTS
    return (candidate.running + 1) / slots + (0.0 if candidate.loaded else COLD_COST)


def place(candidates: Iterable[Candidate]) -> Placement | None:
    """The best candidate, or None when there is none."""
    best = min(candidates, key=lambda c: (cost(c), c.picked, c.node_id), default=None)
    if best is None:
        return None
    warmth = "loaded" if best.loaded else "cold"
    return Placement(best.node_id, f"{warmth}, {best.running} on {best.slots or ASSUMED_SLOTS} slots")
