"""Where a request goes: a pure function over a snapshot.

The node with the lowest expected time to first token is chosen:

    wait for a slot + load of the model + (prompt - cached there) / prefill speed + penalty

- *Wait*: (running + 1 - slots) / slots requests have to end first, each of the usual length at that node's speeds, and
  what waits at the gateway at the pace of all nodes. A slow node with a free slot is left idle only for less than that.
- *Load*: one load, all wait. While a node loads the model, a further load has to save more than a whole load.
- *Cached*: what the node computed lately of this very prompt. It draws the request there until its wait there is
  longer than what is saved.
- *Penalty*: a node that fails fast looks idle; the breaker adds what its failures should have taken.
- Each request on a node slows its prefill a little and its answers very little, so that free nodes share a burst.
  Nodes that differ by less than one request more on one of them are alike, and take turns.

No speed yet: the node gets its first :data:`TRIALS` requests as if it were the fastest, then counts as a typical one.
A node that nobody chose for long gets one request again as if it were the fastest: a speed that was measured wrong
once must not starve it for good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from llmlb.router.table import ASSUMED_SLOTS, TRIALS, Row, State, Table
from llmlb.router.table_costs import DECODE_SHARE, PREFILL_SHARE

__all__ = ["ASSUMED_SLOTS", "TRIALS", "Ask", "Placement", "Row", "State", "Table", "place"]

ALIKE = 0.75
"""Nodes whose costs differ by less than this share of what one request more costs take turns."""
NOTHING: Mapping[str, int] = MappingProxyType({})


class Ask(NamedTuple):
    """What placement needs to know of a request."""

    prompt_tokens: int
    """An estimate will do."""
    max_tokens: int
    """Limit of the answer; 0: unknown."""
    warm: Mapping[str, int] = NOTHING
    """Tokens of this prompt that nodes have in their cache; a few nodes at most."""
    exclude: frozenset[str] = frozenset()
    """Nodes that must not have it."""
    queued: int = 0
    """Other requests for the model that wait at the gateway now. The more there are, the sooner a slow node with a
    free slot is taken instead of waiting for a fast one, and the sooner the model is loaded on one more node."""


class Placement(NamedTuple):
    """The decision, and why."""

    node_id: str
    reason: str
    """For logs and records, such as ``loaded, 0 of 4 slots busy, warm 896 of 930 tokens, 0.21 s``."""
    cost_s: float
    """Expected seconds to the first token, with the small charge for the load of the node."""
    waits: bool
    """True: no slot is free there now."""


def place(table: Table, ask: Ask) -> Placement | None:
    """The best node for this request, or None when none can take it. Nothing is counted: see :meth:`Table.add`.

    Deterministic: the same table, brought there by the same calls, gives the same node. About 15 µs at 1,000 nodes.
    """
    if len(table) == 0:
        return None
    prompt = max(1, ask.prompt_tokens)
    answer = min(ask.max_tokens or math.inf, table.costs.answer_tokens)
    if not ask.warm and not ask.exclude and (few := table.few(prompt, answer, ask.queued)) is not None:
        return _place_few(table, ask, few, answer)
    costs = table.weighed(prompt, answer, ask.queued)
    for node_id, cached in ask.warm.items():
        if (row := table.warm(node_id)) is not None:
            costs[row] -= _saved(prompt, cached) * table.prefill_s[row]
    for node_id in ask.exclude:
        if (row := table.find(node_id)) is not None:
            costs[row] = math.inf
    least = float(costs[costs.argmin()])
    if least == math.inf:
        return None
    (alike,) = (costs <= least + ALIKE * _one_more(table, prompt, answer)).nonzero()
    best = int(alike[table.turn[alike].argmin()]) if len(alike) > 1 else int(alike[0])
    return _placement(table, ask, best, float(costs[best]))


def _place_few(table: Table, ask: Ask, costs: list[float], answer: float) -> Placement | None:
    """The same decision without numpy, whose calls cost more than so few numbers do."""
    least = min(costs)
    if least == math.inf:
        return None
    entries = table.entries
    if len(costs) == 1:
        return _placement(table, ask, 0, least)
    limit = least + ALIKE * _one_more(table, ask.prompt_tokens or 1, answer)
    best, first = -1, 0
    for index, cost in enumerate(costs):
        if cost <= limit and (best < 0 or entries[index].turn < first):
            best, first = index, entries[index].turn
    return _placement(table, ask, best, costs[best])


def _saved(prompt: int, cached: int) -> int:
    """Prompt tokens that need no computing; the last one always does."""
    return max(0, min(cached, prompt - 1))


def _one_more(table: Table, prompt: float, answer: float) -> float:
    """Seconds that one request more adds to the cost of a node, at the least: on the fastest, with the most slots."""
    costs = table.costs
    return (prompt * PREFILL_SHARE / costs.best.prefill + answer * DECODE_SHARE / costs.best.decode) / table.most_slots


def _placement(table: Table, ask: Ask, index: int, cost_s: float) -> Placement:
    entry = table.entries[index]
    row, running, slots = entry.row, entry.running, entry.slots
    text = _busy(row.state, running, slots)
    if ask.warm and row.state == "ready" and (saved := _saved(ask.prompt_tokens, ask.warm.get(entry.node_id, 0))):
        text += f", warm {saved} of {ask.prompt_tokens} tokens"
    if row.penalty_s >= 0.01:
        text += f", {row.penalty_s:.1f} s for failures"
    return Placement(entry.node_id, text + _seconds(round(cost_s * 100)), cost_s, running >= slots)


@lru_cache(1024)
def _busy(state: str, running: int, slots: int) -> str:
    waiting = f", {running - slots} waiting" if running > slots else ""
    return f"{'loaded' if state == 'ready' else state}, {min(running, slots)} of {slots} slots busy{waiting}"


@lru_cache(1024)
def _seconds(hundredths: int) -> str:
    return f", {hundredths / 100:.2f} s"
