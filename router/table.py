"""The snapshot that placement decides on: one model over all nodes, kept up to date row by row.

Each row is weighed when it changes, and the weights lie in numpy columns, so that a decision over 1,000 nodes is a
handful of vector operations (:mod:`llmlb.router.placement`).
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmlb.router.table_costs import Costs, Speeds, usable_number

FEW = 16
"""Nodes up to which plain numbers are faster than vectors."""
ASSUMED_SLOTS = 4
"""Of a model whose slots are not known, because it is not loaded there."""
TRIALS = 3
"""Requests that an unmeasured node gets as if it were the fastest."""
FORGOTTEN_AFTER = 500
"""Decisions a node, times the number of nodes, after which one that was never chosen meanwhile is tried again. So at
most one request in 500 goes to a node that may be slower than the best."""

State = Literal["ready", "loading", "cold"]
Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """One node, as far as one model goes."""

    usable: bool
    """Online, not suspect, not draining."""
    state: State
    slots: int
    """0: unknown, :data:`ASSUMED_SLOTS` are assumed."""
    running: int
    """Requests for the model on it, waiting ones included."""
    prefill_tps: float | None = None
    """Prompt tokens a second; None: not measured."""
    decode_tps: float | None = None
    """Tokens a second of one answer; None: not measured."""
    load_s: float | None = None
    """Seconds to load (cold), left to load (loading), it took to load (ready); None: unknown."""
    fits: bool = True
    """A cold load would fit into memory."""
    penalty_s: float = 0.0
    """Seconds that fast failures count (:meth:`llmlb.router.breaker.Breakers.penalty_s`)."""
    closed: bool = True
    """The breaker lets requests through, or one as a probe."""
    same_answer: bool = False
    """Load, cache and migration do not change an answer there. Placement makes no use of it."""


@dataclass(slots=True)
class Entry:
    """A row and what the table keeps with it."""

    node_id: str
    row: Row
    running: int = 0
    slots: int = ASSUMED_SLOTS
    prefill_tps: float | None = None
    decode_tps: float | None = None
    load_s: float | None = None
    """The last that was measured there, kept while the model is not in memory."""
    tries: int = 0
    """Requests it got, counted up to TRIALS."""
    forgotten: bool = False
    """It gets the next request as if it were the fastest."""
    chosen_at: int = 0
    """The decision at which it was chosen last, or joined."""
    room: int | None = None
    """Free slots; None: it can't be chosen, or is cold."""
    fixed_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    turn: int = 0
    """These four are what the columns of the table hold for it."""
    steady: tuple[float, Speeds, float] | None = None
    """(seconds of load and penalty, speeds, seconds a usual request takes) while nothing but ``running`` can change its
    weights: in memory, not forgotten, and measured or over its trials (a model whose answers have one token at the
    most, such as an embedding's, has no decode speed for ever)."""


class Table:
    """One model over all nodes.

    ``seed`` differs between gateways: which of equal nodes that were never chosen comes first depends on it, so that
    gateways that start together do not all choose the same.
    """

    turn: NDArray[np.int64]
    """Of nodes that cost the same the one with the smallest goes first."""
    fixed_s: Column
    prefill_s: Column
    """Seconds a prompt token takes."""
    decode_s: Column
    rate: Column
    """Requests a second; 0 where the model is cold."""
    full: Column
    """1 where every slot is taken."""
    cold: Column
    """1 where the model is cold and not on its way."""
    _sum: Column
    _term: Column

    def __init__(self, seed: str = "") -> None:
        self.costs = Costs()
        self.most_slots = ASSUMED_SLOTS
        """The most slots a row ever had."""
        self._seed = seed
        self._index: dict[str, int] = {}
        self.entries: list[Entry] = []
        self._order: OrderedDict[str, None] = OrderedDict()
        """Node ids, the one that was not chosen for longest first."""
        self._left: dict[str, float] = {}
        """Seconds left to load, of nodes that load it and can be chosen."""
        self._decisions = 0
        self._forgotten_at = 0
        """Before this decision nobody is forgotten."""
        self._unweighed = 0
        self._stale: set[int] = set()
        """Rows whose weights the columns do not have yet: where few nodes are, nobody looks there."""
        self._free = 0
        self._open = 0
        """Rows with a room."""
        self._columns: Column = np.zeros((8, 16))
        self._turns: NDArray[np.int64] = np.zeros(16, dtype=np.int64)
        self._resize(0)

    def _resize(self, size: int) -> None:
        """Views of the first rows, made once for many decisions."""
        if size > len(self._turns):
            self._columns = np.concatenate((self._columns, np.zeros_like(self._columns)), axis=1)
            self._turns = np.concatenate((self._turns, np.zeros_like(self._turns)))
        self.turn = self._turns[:size]
        self.fixed_s, self.prefill_s, self.decode_s, self.rate, self.full, self.cold, self._sum, self._term = (
            column[:size] for column in self._columns
        )

    # What is known

    def put(self, node_id: str, row: Row) -> None:
        """A node's newest row, for any that was there. Its ``running`` is the truth from now on."""
        index = self._index.get(node_id)
        new = index is None
        if index is None:
            index = self._append(node_id, row)
        entry = self.entries[index]
        if not new and entry.row == row and entry.running == row.running:
            return
        entry.row, entry.running = row, max(0, row.running)
        entry.slots = row.slots if row.slots > 0 else ASSUMED_SLOTS
        self.most_slots = max(self.most_slots, entry.slots)
        if _note(entry, row) or new:
            self._unweighed += 1
            if self._unweighed >= max(1, len(self.entries) // 8):
                self._measure()
        self._weigh(index)

    def drop(self, node_id: str) -> None:
        """The node is gone, or does not have the model any more. Nothing when it is not here."""
        index = self._index.pop(node_id, None)
        if index is None:
            return
        self._freshen()
        self._forgotten_at = 0  # fewer nodes are sooner through
        self._account(self.entries[index], None)
        self._left.pop(node_id, None)
        del self._order[node_id]
        last = self.entries.pop()
        if last.node_id != node_id:
            self.entries[index] = last
            self._index[last.node_id] = index
            self._columns[:, index] = self._columns[:, len(self.entries)]
            self._turns[index] = self._turns[len(self.entries)]
        self._resize(len(self.entries))

    def add(self, node_id: str, running: int) -> None:
        """So many requests more (or, negative, fewer) are on the node. More: it was chosen, and others' turn is next.

        Nothing when the node is not here.
        """
        index = self._index.get(node_id)
        if index is None:
            return
        entry = self.entries[index]
        entry.running += running
        if entry.running < 0:
            entry.running = 0
        if running > 0:
            self._decisions += 1
            self.turn[index] = entry.turn = entry.chosen_at = self._decisions
            self._order.move_to_end(node_id)
            if entry.tries < TRIALS:
                entry.tries += 1
            entry.forgotten = False
        if entry.steady is None:
            self._weigh(index)
        else:
            self._weigh_running(index, entry, *entry.steady)
        if running > 0 and self._decisions >= self._forgotten_at:
            self._remember_the_forgotten()

    def finished(self, prompt_tokens: int, answer_tokens: int) -> None:
        """A request for the model ended well: how long requests usually are is what a wait is estimated by."""
        if self.costs.finished(prompt_tokens, answer_tokens):
            self._weigh_all()

    # What is asked

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self) -> dict[str, Row]:
        """All rows with what runs there now; for tests and for debugging."""
        return {entry.node_id: replace(entry.row, running=entry.running) for entry in self.entries}

    def free(self) -> int:
        """Slots that a request could have at once, over all nodes that can be chosen; those of loading nodes count.

        Cold nodes count only when the model is neither loaded nor on its way anywhere, and then one of them: the one
        load that all wait for.
        """
        if self._open:
            return self._free
        cold = np.flatnonzero(self.cold)
        return max((self.entries[index].slots for index in cold.tolist()), default=0)

    def find(self, node_id: str) -> int | None:
        """The index of a node's row."""
        return self._index.get(node_id)

    def warm(self, node_id: str) -> int | None:
        """The index of a node's row if it has the model in memory, and so may have a cache."""
        index = self._index.get(node_id)
        return index if index is not None and self.entries[index].row.state == "ready" else None

    def entry(self, index: int) -> Entry:
        """The row at an index and what goes with it."""
        return self.entries[index]

    def weighed(self, prompt: float, answer: float, queued: int) -> Column:
        """Seconds that a request would cost on each node; inf where it can't go. Valid until the next call.

        ``prompt`` and ``answer`` in tokens. ``queued`` requests wait at the gateway, too: a full node counts as
        taking their turns as well.
        """
        if self._stale:
            self._freshen()
        costs, term = self._sum, self._term
        np.multiply(self.prefill_s, prompt, out=costs)
        np.multiply(self.decode_s, answer, out=term)
        costs += term
        costs += self.fixed_s
        if self._left:
            np.multiply(self.cold, min(self._left.values()), out=term)
            costs += term
        if queued > 0 and (rate := float(self.rate.sum())) > 0.0:
            np.multiply(self.full, queued / rate, out=term)
            costs += term
        return costs

    def few(self, prompt: float, answer: float, queued: int) -> list[float] | None:
        """As :meth:`weighed`, without numpy: faster up to FEW nodes. None: there are more, or a wait or load counts."""
        entries = self.entries
        if len(entries) > FEW or queued > 0 or self._left:
            return None
        return [entry.prefill_s * prompt + entry.decode_s * answer + entry.fixed_s for entry in entries]

    # Inside

    def _freshen(self) -> None:
        """Bring the columns up to date."""
        for index in self._stale:
            entry = self.entries[index]
            self.fixed_s[index], self.prefill_s[index] = entry.fixed_s, entry.prefill_s
            self.decode_s[index] = entry.decode_s
            self.full[index] = 0.0 if entry.slots > entry.running else 1.0
        self._stale.clear()

    def _append(self, node_id: str, row: Row) -> int:
        index = len(self.entries)
        self._resize(index + 1)
        self._index[node_id] = index
        self.entries.append(Entry(node_id, row, chosen_at=self._decisions))
        self._order[node_id] = None
        # Before all that were ever chosen, and among themselves in an order that does not depend on who came first.
        digest = hashlib.blake2b(f"{self._seed} {node_id}".encode(), digest_size=7).digest()
        self.turn[index] = self.entries[index].turn = -1 - int.from_bytes(digest, "big")
        return index

    def _measure(self) -> None:
        """Typical values anew; what is weighed by them, too, when they moved."""
        self._unweighed = 0
        entries = self.entries
        if self.costs.measured(
            (entry.prefill_tps for entry in entries if entry.prefill_tps is not None),
            (entry.decode_tps for entry in entries if entry.decode_tps is not None),
            (entry.load_s for entry in entries if entry.load_s is not None),
        ):
            for index, entry in enumerate(entries):
                if entry.prefill_tps is None or entry.decode_tps is None or entry.load_s is None or entry.forgotten:
                    self._weigh(index)

    def _weigh_all(self) -> None:
        for index in range(len(self.entries)):
            self._weigh(index)

    def _remember_the_forgotten(self) -> None:
        node_id = next(iter(self._order))
        entry = self.entries[self._index[node_id]]
        # Of all it was chosen first, and who is chosen or comes later only makes this later.
        self._forgotten_at = entry.chosen_at + FORGOTTEN_AFTER * len(self.entries)
        if self._decisions >= self._forgotten_at:
            entry.forgotten = True
            entry.chosen_at = self._decisions
            self._order.move_to_end(node_id)
            self._weigh(self._index[node_id])

    def _speeds(self, entry: Entry) -> Speeds:
        if entry.forgotten:
            return self.costs.best
        assumed = self.costs.best if entry.tries < TRIALS else self.costs.typical
        return Speeds(entry.prefill_tps or assumed.prefill, entry.decode_tps or assumed.decode)

    def _weigh_running(self, index: int, entry: Entry, extra_s: float, speeds: Speeds, service_s: float) -> None:
        """As :meth:`_weigh` where only what runs there is other than before: a third of its cost, twice a request."""
        running, slots = entry.running, entry.slots
        entry.fixed_s, entry.prefill_s, entry.decode_s = self.costs.busy(running, slots, speeds, extra_s, service_s)
        self._stale.add(index)
        room = slots - running if slots > running else 0
        if entry.room is None:
            self._account(entry, room)
        else:
            self._free += room - entry.room
            entry.room = room

    def _weigh(self, index: int) -> None:
        entry = self.entries[index]
        row = entry.row
        entry.steady = None
        # Cold by its last word, but a request is on its way to it: then it loads, or will at once.
        idle = row.state == "cold" and not entry.running
        if self._left:
            self._left.pop(entry.node_id, None)
        if not (row.usable and row.closed and (row.fits or row.state != "cold")):
            self._account(entry, None)
            self.fixed_s[index] = entry.fixed_s = math.inf
            self.prefill_s[index] = self.decode_s[index] = self.rate[index] = 0.0
            entry.prefill_s = entry.decode_s = 0.0
            self._stale.discard(index)
            self.full[index] = self.cold[index] = 0.0
            return
        load_s = 0.0
        if row.state != "ready":
            left_s = None if row.load_s is None else usable_number(max(row.load_s, 0.001))
            load_s = left_s or entry.load_s or self.costs.load_s
            if not idle:
                self._left[entry.node_id] = load_s
        speeds, extra_s = self._speeds(entry), load_s + row.penalty_s
        weights = self.costs.weigh(entry.running, entry.slots, speeds, extra_s)
        known = (entry.prefill_tps and entry.decode_tps) or entry.tries >= TRIALS
        if row.state == "ready" and known and not entry.forgotten:
            entry.steady = extra_s, speeds, self.costs.service_s(speeds)
        self.fixed_s[index] = entry.fixed_s = weights.fixed_s
        self.prefill_s[index] = entry.prefill_s = weights.prefill_s
        self.decode_s[index] = entry.decode_s = weights.decode_s
        self._stale.discard(index)
        self.rate[index] = 0.0 if idle else weights.rate
        room = max(0, entry.slots - entry.running)
        self.full[index] = 0.0 if idle or room else 1.0
        self.cold[index] = 1.0 if idle else 0.0
        self._account(entry, None if idle else room)

    def _account(self, entry: Entry, room: int | None) -> None:
        self._free += (room or 0) - (entry.room or 0)
        self._open += (room is not None) - (entry.room is not None)
        entry.room = room


def _note(entry: Entry, row: Row) -> bool:
    """Keep what the row has measured. True: it is other than before."""
    before = entry.prefill_tps, entry.decode_tps, entry.load_s
    entry.prefill_tps = usable_number(row.prefill_tps) or entry.prefill_tps
    entry.decode_tps = usable_number(row.decode_tps) or entry.decode_tps
    if row.state != "loading":
        entry.load_s = usable_number(row.load_s) or entry.load_s
    return before != (entry.prefill_tps, entry.decode_tps, entry.load_s)
