"""What each node has to do, per model: the snapshots that placement decides on, kept up to date row by row.

A table exists for each name that was asked for lately; a heartbeat changes the rows of its node in those, and nothing
when nothing changed. What this gateway itself has running is known exactly; what others have there is what the
heartbeat counts beyond the most that was ours since the heartbeat before.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from llmlb.bus.messages.models import ModelInfo
from llmlb.bus.messages.nodes import Heartbeat, LoadedModel
from llmlb.router.breaker import Breakers
from llmlb.router.placement import Ask, Placement, place
from llmlb.router.table import Row, Table

log = logging.getLogger("llmlb.router.loads")

UNUSED_AFTER_S = 600.0
NEEDS = 1.1
"""Memory a model takes, beside its size on the disk."""


@dataclass(slots=True)
class Known:
    """One node."""

    beat: Heartbeat
    models: Mapping[str, ModelInfo]
    names: Mapping[str, str]
    usable: bool
    instance: str = ""
    loaded: dict[str, LoadedModel] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    """Requests of this gateway there, by model."""
    peak: dict[str, int] = field(default_factory=dict)
    """The most of them since the last heartbeat."""
    full: set[str] = field(default_factory=set)
    """Models it refused as busy since the last heartbeat."""


@dataclass(slots=True)
class _Asked:
    table: Table
    names: dict[str, str] = field(default_factory=dict)
    """The model's name on each node."""
    used_at: float = 0.0
    own_name: str | None = None
    """The name that it has on every node; None: they do not agree, or there are none."""

    def agree(self) -> None:
        """``names`` is another one now."""
        names = set(self.names.values())
        self.own_name = names.pop() if len(names) == 1 else None


class Loads:
    """Tables by the name that requests use. ``on_room`` is called with a name when a request may find room there."""

    def __init__(self, breakers: Breakers, clock: Callable[[], float] = time.monotonic) -> None:
        self.breakers = breakers
        self.on_room: Callable[[str], None] = lambda _: None
        self.on_cold: Callable[[str], None] = lambda _: None
        """Called with a node's id when it started anew or unloaded a model: its caches are gone."""
        self._clock = clock
        self._seed = uuid.uuid4().hex
        self._nodes: dict[str, Known] = {}
        self._asked: dict[str, _Asked] = {}
        self._troubled: set[tuple[str, str]] = set()
        """(node, model) whose breaker has something to say; looked at again before each decision."""

    # What is heard

    def heard(
        self, beat: Heartbeat, models: Mapping[str, ModelInfo], names: Mapping[str, str], *, usable: bool
    ) -> None:
        """A heartbeat came, with what the node is known to have."""
        known = self._nodes.get(beat.node_id)
        if known is None:
            known = self._nodes[beat.node_id] = Known(beat, models, names, usable)
        elif known.beat.instance != beat.instance:
            self.breakers.forget(beat.node_id)  # another process, which has not failed yet
        known.beat, known.models, known.names, known.usable = beat, models, names, usable
        loaded = {entry.name: entry for entry in beat.loaded}
        if known.loaded.keys() - loaded.keys() or known.instance != beat.instance:
            known.instance = beat.instance
            self.on_cold(beat.node_id)
        known.loaded = loaded
        known.full.clear()
        for name, asked in self._asked.items():
            if name in names or beat.node_id in asked.names:
                self._update(name, asked, beat.node_id, known)
        known.peak = dict(known.own)

    def usable(self, node_id: str, *, usable: bool) -> None:
        """It may get work, or not any more."""
        known = self._nodes.get(node_id)
        if known is not None and known.usable is not usable:
            known.usable = usable
            self._refresh(node_id, known)

    def forget(self, node_id: str) -> None:
        if self._nodes.pop(node_id, None) is not None:
            for asked in self._asked.values():
                asked.table.drop(node_id)
                if asked.names.pop(node_id, None) is not None:
                    asked.agree()
            self.breakers.forget(node_id)
            self.on_cold(node_id)

    def _refresh(self, node_id: str, known: Known) -> None:
        for name, asked in self._asked.items():
            if name in known.names:
                self._update(name, asked, node_id, known)

    def _update(self, asked_name: str, asked: _Asked, node_id: str, known: Known) -> None:
        name = known.names.get(asked_name)
        if name is None or name not in known.models:
            asked.table.drop(node_id)
            if asked.names.pop(node_id, None) is not None:
                asked.agree()
            return
        if asked.names.get(node_id) != name:
            asked.names[node_id] = name
            asked.agree()
        asked.table.put(node_id, self._row(node_id, known, name))
        if known.usable:
            self.on_room(asked_name)

    def _row(self, node_id: str, known: Known, name: str) -> Row:
        now = self._clock()
        entry = known.loaded.get(name)
        own = known.own.get(name, 0)
        running = own
        if entry is not None:
            running += max(0, entry.running - known.peak.get(name, 0))
            if name in known.full:
                running = max(running, entry.slots)
        return Row(
            usable=known.usable,
            state="cold" if entry is None else "ready" if entry.ready else "loading",
            slots=0 if entry is None else entry.slots,
            running=running,
            prefill_tps=None if entry is None else entry.prefill_tps,
            decode_tps=None if entry is None else entry.decode_tps,
            load_s=None if entry is None else entry.load_s,
            fits=known.models[name].size_bytes * NEEDS <= _capacity(known.beat),
            penalty_s=self.breakers.penalty_s(node_id, name, now),
            closed=self.breakers.allows(node_id, name, now),
            same_answer=entry is not None and entry.same_answer,
        )

    # What is asked

    def _table(self, model: str) -> _Asked | None:
        """The table of a name; None when no node has it."""
        asked = self._asked.get(model)
        if asked is None:
            asked = _Asked(Table(self._seed))
            for node_id, known in self._nodes.items():
                if model in known.names:
                    self._update(model, asked, node_id, known)
            if not asked.names:
                return None
            self._asked[model] = asked
        asked.used_at = self._clock()
        return asked if asked.names else None  # it may have been there, and be gone from every node by now

    def place(self, model: str, ask: Ask) -> tuple[Placement, str] | None:
        """A node and the model's name there; None when none can take it. Nothing is reserved: see :meth:`started`."""
        asked = self._table(model)
        if asked is None:
            return None
        if self._troubled:
            for node_id, name in self._troubled:
                if asked.names.get(node_id) == name:
                    asked.table.put(node_id, self._row(node_id, self._nodes[node_id], name))
        found = place(asked.table, ask)
        return None if found is None else (found, asked.names[found.node_id])

    def line(self, model: str) -> str:
        """Where a request for this name waits: with those that ask for the same model by another name."""
        asked = self._asked.get(model)
        return model if asked is None else asked.own_name or model

    def has(self, model: str) -> bool:
        """Whether any node has it, usable or not."""
        asked = self._asked.get(model) or self._table(model)
        return asked is not None and bool(asked.names)

    def hopeful(self, model: str, *, exclude: Collection[str] = ()) -> bool:
        """Whether a usable node has it, besides those: then it is worth waiting for room there."""
        asked = self._table(model)
        return asked is not None and any(
            self._nodes[node_id].usable for node_id in asked.names if node_id not in exclude
        )

    def troubled(self, node_id: str, name: str) -> bool:
        """Whether it failed there lately."""
        return bool(self._troubled) and (node_id, name) in self._troubled

    def several(self, model: str) -> bool:
        """Whether there is a choice to make at all."""
        asked = self._asked.get(model) or self._table(model)
        return asked is not None and len(asked.names) > 1

    # What happens

    def started(self, node_id: str, name: str) -> None:
        """A request goes to this model there."""
        self._count(node_id, name, 1)
        if self.troubled(node_id, name) and self.breakers.state(node_id, name, self._clock()) == "half-open":
            self.breakers.probing(node_id, name)

    def ended(self, node_id: str, name: str) -> None:
        """It is over there."""
        self._count(node_id, name, -1)

    def _count(self, node_id: str, name: str, change: int) -> None:
        known = self._nodes.get(node_id)
        if known is None:
            return
        own = known.own.get(name, 0) + change
        known.own[name] = own = own if own > 0 else 0
        if change > 0 and own > known.peak.get(name, 0):
            known.peak[name] = own
        for asked_name, asked in self._asked.items():
            if asked.names.get(node_id) == name:
                asked.table.add(node_id, change)
                if change < 0:
                    self.on_room(asked_name)

    def busy(self, node_id: str, name: str) -> None:
        """It refused a request because it is full: so it is until its next heartbeat."""
        known = self._nodes.get(node_id)
        if known is not None:
            known.full.add(name)
            self._refresh(node_id, known)

    def failed(self, node_id: str, name: str, after_s: float) -> None:
        """A request failed there, and not by its own fault."""
        self.breakers.failed(node_id, name, self._clock(), after_s)
        self._troubled.add((node_id, name))

    def succeeded(self, node_id: str, name: str) -> None:
        if self._troubled and (node_id, name) in self._troubled:
            self.breakers.succeeded(node_id, name, self._clock())

    def finished(self, model: str, prompt_tokens: int, answer_tokens: int) -> None:
        """A request for this model was that long."""
        asked = self._asked.get(model)
        if asked is not None:
            asked.table.finished(prompt_tokens, answer_tokens)

    def abandoned(self, node_id: str, name: str, began: float) -> None:
        """A request was given up by its client: nothing is known of how it would have ended."""
        if self._troubled and (node_id, name) in self._troubled:
            self.breakers.abandoned(node_id, name, began)

    def tick(self) -> None:
        """Time has passed: breakers open again, tables that nobody asks for go."""
        now = self._clock()
        for pair in list(self._troubled):
            node_id, name = pair
            known = self._nodes.get(node_id)
            if known is not None:
                self._refresh(node_id, known)
            if known is None or (
                self.breakers.state(node_id, name, now) == "closed"
                and self.breakers.penalty_s(node_id, name, now) < 0.01
            ):
                self._troubled.discard(pair)
        for model in [model for model, asked in self._asked.items() if now - asked.used_at > UNUSED_AFTER_S]:
            del self._asked[model]


def _capacity(beat: Heartbeat) -> float:
    """Bytes a model may take there: all of the larger of RAM and VRAM; idle models make way."""
    vram = sum(gpu.memory_total_bytes for gpu in beat.gpus)
    return max(vram, beat.memory_total_bytes or 0) or float("inf")
