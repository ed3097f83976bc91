"""Circuit breakers, one per (node, model): what failed there lately gets no requests for a while.

::

    closed ── failure ──► open (1 s) ── time is over ──► half-open ── probe succeeds ──► closed
                            ▲                               │
                            └── twice as long, ≤ 60 s ◄── probe fails

While half-open one request at a time is let through, as the probe. What fails fast looks idle and would draw every
request to it (https://github.com/thushan/olla/issues/144), so a fast failure also counts as seconds of load, which
fade. ``NodeBusy`` is no failure, and is not told here.

Pure: ``now`` is seconds of a monotonic clock that the caller reads. Bounded by the (node, model) pairs that failed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

OPEN_S = 1.0
"""After the first failure; doubled by each further one in a row."""
OPEN_MAX_S = 60.0
PROBE_MAX_S = 300.0
"""A probe that nobody reported on for so long is taken for abandoned, so that a lost report shuts no node out."""
FAST_S = 2.0
"""An attempt that fails sooner than this was faster than an answer would have been."""
PENALTY_S = 2.0
"""For a failure at once; less for a slower one, none from FAST_S on."""
PENALTY_MAX_S = 30.0
HALF_LIFE_S = 10.0
"""In which a penalty fades to its half."""
NEGLIGIBLE_S = 0.01

BreakerState = Literal["closed", "open", "half-open"]


@dataclass(slots=True)
class _Circuit:
    tripped: bool = False
    """True: open or half-open."""
    open_s: float = 0.0
    """How long it is open this time; 0 while closed."""
    opened_at: float = -math.inf
    """When it opened last; kept while closed."""
    probe_since: float | None = None
    penalty_s: float = 0.0
    penalty_at: float = 0.0

    def state(self, now: float) -> BreakerState:
        if not self.tripped:
            return "closed"
        return "open" if now < self.opened_at + self.open_s else "half-open"

    def penalty(self, now: float) -> float:
        return self.penalty_s * math.exp2(min(0.0, self.penalty_at - now) / HALF_LIFE_S)

    def probed(self, now: float) -> bool:
        return self.probe_since is not None and now - self.probe_since < PROBE_MAX_S


class Breakers:
    """All breakers of one process."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, _Circuit]] = {}
        self._latest = -math.inf

    def failed(self, node_id: str, model: str, now: float, after_s: float) -> None:
        """A request failed by the node's fault, ``after_s`` seconds after it was sent there.

        Requests that were sent before the breaker opened and fail after it are the same incident: they add to the
        penalty and leave the breaker as it is, even if a probe closed it meanwhile.
        """
        self._latest = max(self._latest, now)
        circuits = self._nodes.setdefault(node_id, {})
        circuit = circuits.setdefault(model, _Circuit())
        fast = max(0.0, 1.0 - max(0.0, after_s) / FAST_S)
        circuit.penalty_s = min(PENALTY_MAX_S, circuit.penalty(now) + fast * PENALTY_S)
        circuit.penalty_at = now
        if now - max(0.0, after_s) <= circuit.opened_at:
            return
        circuit.open_s = min(OPEN_MAX_S, 2.0 * circuit.open_s) if circuit.tripped else OPEN_S
        circuit.tripped, circuit.opened_at, circuit.probe_since = True, now, None

    def succeeded(self, node_id: str, model: str, now: float) -> None:
        """A request ended well there. Closes the breaker, unless it is open: what ended well then was sent before.

        The penalty goes on fading by itself: a node that fails every other request must not look idle.
        """
        self._latest = max(self._latest, now)
        circuit = self._find(node_id, model)
        if circuit is None or circuit.state(now) == "open":
            return
        circuit.tripped, circuit.open_s, circuit.probe_since = False, 0.0, None
        self._tidy(now)

    def allows(self, node_id: str, model: str, now: float) -> bool:
        """Whether a request may go there: closed, or half-open with no probe under way."""
        self._latest = max(self._latest, now)
        circuit = self._find(node_id, model)
        if circuit is None:
            return True
        state = circuit.state(now)
        return state == "closed" or (state == "half-open" and not circuit.probed(now))

    def probing(self, node_id: str, model: str) -> None:
        """A request was sent there though the breaker is not closed: it is the probe. Nothing when it is closed.

        End it with :meth:`succeeded`, :meth:`failed` or :meth:`abandoned`.
        """
        circuit = self._find(node_id, model)
        if circuit is not None and circuit.tripped:
            circuit.probe_since = self._latest

    def abandoned(self, node_id: str, model: str, began: float | None = None) -> None:
        """A request was given up by its client: neither a success nor a failure. The next request is the probe.

        ``began``: when it was sent. One that was sent before the probe is not the probe, and changes nothing; without
        it every request is taken for the probe.
        """
        circuit = self._find(node_id, model)
        if circuit is None or circuit.probe_since is None:
            return
        if began is None or began >= circuit.probe_since:
            circuit.probe_since = None

    def penalty_s(self, node_id: str, model: str, now: float) -> float:
        """Seconds that its failures count as load; 0 to PENALTY_MAX_S."""
        self._latest = max(self._latest, now)
        circuit = self._find(node_id, model)
        return 0.0 if circuit is None else circuit.penalty(now)

    def state(self, node_id: str, model: str, now: float) -> BreakerState:
        """Of one pair; ``closed`` for what never failed."""
        self._latest = max(self._latest, now)
        circuit = self._find(node_id, model)
        return "closed" if circuit is None else circuit.state(now)

    def states(self, now: float | None = None) -> dict[tuple[str, str], BreakerState]:
        """State by (node, model), of those that failed lately. ``now``: the latest that was heard of."""
        at = self._latest if now is None else now
        return {
            (node_id, model): circuit.state(at)
            for node_id, circuits in self._nodes.items()
            for model, circuit in circuits.items()
        }

    def forget(self, node_id: str) -> None:
        """The node left the cluster, or started anew."""
        self._nodes.pop(node_id, None)

    def _find(self, node_id: str, model: str) -> _Circuit | None:
        circuits = self._nodes.get(node_id)
        return None if circuits is None else circuits.get(model)

    def _tidy(self, now: float) -> None:
        """Drop what is as if it had never failed: no penalty, and no failure of before is still to be expected."""
        for node_id in list(self._nodes):
            circuits = self._nodes[node_id]
            for model, circuit in list(circuits.items()):
                late = now - circuit.opened_at > OPEN_MAX_S
                if late and not circuit.tripped and circuit.penalty(now) < NEGLIGIBLE_S:
                    del circuits[model]
            if not circuits:
                del self._nodes[node_id]
