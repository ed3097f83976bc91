"""The waiting places of one gateway process: bounded over all models, fair between API keys.

Each model has its own line, as its slots are its own. In a line the keys take turns: whoever has its turn sends its
oldest request and goes to the end of the round. A key with 100 requests waiting therefore delays the first of another
one by one slot time at most, and nobody starves: before a request go at most as many of another key as there are of its
own key up to it. A key with nothing waiting is not in the round; it has neither credit for the time it was away nor
debt for what it had before, and joins at the end.

Pure: ``now`` is seconds of a monotonic clock that the caller reads.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from llmlb.bus.errors import QueueFull

PACE_OVER = 16
"""Admissions that the pace of a line is measured over."""
PACE_LEAST = 2
"""Below so many it is not known."""
PACES_MAX = 1000
"""Models whose pace is kept while nobody waits for them."""
RETRY_AFTER_S = 5
"""While no pace is known."""
RETRY_AFTER_MAX_S = 60


@dataclass(frozen=True, slots=True)
class _Ticket:
    number: int
    order: int
    """Counts up over all tickets."""
    model: str
    key: str
    joined_at: float
    deadline: float


@dataclass(slots=True)
class _Pace:
    """How fast a line moves, while somebody waits in it."""

    gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=PACE_OVER))
    since: float | None = None
    """The last admission after which the line was not empty."""

    def admitted(self, now: float, *, empty: bool) -> None:
        if self.since is not None:
            self.gaps_s.append(max(0.0, now - self.since))
        self.since = None if empty else now

    def gap_s(self) -> float | None:
        """Seconds between two admissions, or None while unknown."""
        return sum(self.gaps_s) / len(self.gaps_s) if len(self.gaps_s) >= PACE_LEAST else None


_Line = OrderedDict[str, list[tuple[int, int]]]
"""(order, ticket) of those who wait, oldest first, by key; the key whose turn it is first."""


class Queue:
    """At most ``most`` requests wait, over all models. Full: :meth:`join` raises QueueFull, nothing is dropped.

    With ``displace``, a full queue still takes a request of a key that has fewer waiting than another one: the newest
    request of the key with the most is put out and named by :meth:`displaced`, which then must be called after each
    :meth:`join`. Without it one key can fill every place, and others are refused.
    """

    def __init__(self, most: int, *, displace: bool = False) -> None:
        self.most = most
        self._displace = displace
        self._tickets: OrderedDict[int, _Ticket] = OrderedDict()
        self._lines: dict[str, _Line] = {}
        self._counts: Counter[str] = Counter()
        self._by_key: Counter[str] = Counter()
        self._deadlines: list[tuple[float, int]] = []
        self._paces: OrderedDict[str, _Pace] = OrderedDict()
        self._displaced: list[int] = []
        self._order = 0

    # Coming and going

    def join(self, ticket_id: int, model: str, key: str, now: float, deadline: float) -> int:
        """Wait for a slot of the model; how many go before, 0: next.

        Raises QueueFull when every place is taken, ValueError when the ticket waits already.
        """
        if ticket_id in self._tickets:
            raise ValueError(f"ticket {ticket_id} waits already")
        if len(self._tickets) >= self.most and not self._make_place(key):
            full = QueueFull(f"every slot is taken and all {self.most} waiting places are full; try again shortly")
            full.retry_after_s = self.retry_after_s()
            raise full
        self._order += 1
        ticket = _Ticket(ticket_id, self._order, model, key, now, deadline)
        self._tickets[ticket_id] = ticket
        self._lines.setdefault(model, OrderedDict()).setdefault(key, []).append((ticket.order, ticket_id))
        self._counts[model] += 1
        self._by_key[key] += 1
        heapq.heappush(self._deadlines, (deadline, ticket_id))
        if len(self._deadlines) > 2 * len(self._tickets) + 64:
            self._deadlines = [(one.deadline, one.number) for one in self._tickets.values()]
            heapq.heapify(self._deadlines)
        return self.position(ticket_id)

    def leave(self, ticket_id: int) -> bool:
        """It waits no more, for whatever reason. False: it did not wait (any more)."""
        ticket = self._tickets.get(ticket_id)
        if ticket is None:
            return False
        self._remove(ticket)
        if ticket.model not in self._lines and ticket.model in self._paces:
            self._paces[ticket.model].since = None
        return True

    def next(self, model: str) -> int | None:
        """Whose turn it is, or None when nobody waits. Changes nothing: see :meth:`admit`."""
        line = self._lines.get(model)
        return None if not line else next(iter(line.values()))[0][1]

    def admit(self, ticket_id: int, now: float) -> None:
        """It gets a slot, and its key goes to the end of the round. Raises KeyError when it does not wait."""
        ticket = self._tickets[ticket_id]
        self._remove(ticket)
        line = self._lines.get(ticket.model)
        if line is not None and ticket.key in line:
            line.move_to_end(ticket.key)
        pace = self._paces.setdefault(ticket.model, _Pace())
        pace.admitted(now, empty=line is None)
        self._paces.move_to_end(ticket.model)
        if len(self._paces) > PACES_MAX:
            self._paces.popitem(last=False)

    def expired(self, now: float) -> list[int]:
        """Those whose deadline has come, the earliest first. They wait no more."""
        out: list[int] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, ticket_id = heapq.heappop(self._deadlines)
            ticket = self._tickets.get(ticket_id)
            if ticket is not None and ticket.deadline == deadline and self.leave(ticket_id):
                out.append(ticket_id)
        return out

    def displaced(self) -> list[int]:
        """Those who were put out for the sake of other keys since the last call. They wait no more."""
        out, self._displaced = self._displaced, []
        return out

    # What is asked

    def position(self, ticket_id: int) -> int:
        """How many go before it if nobody comes or leaves. O(keys). Raises KeyError when it does not wait."""
        ticket = self._tickets[ticket_id]
        line = self._lines[ticket.model]
        rounds = bisect.bisect_left(line[ticket.key], (ticket.order, ticket_id))
        if not rounds and next(reversed(line)) == ticket.key:
            return len(line) - 1
        before, each = 0, rounds + 1
        for key, waiting in line.items():
            if key == ticket.key:
                before += rounds
                each = rounds
            else:
                before += min(len(waiting), each)
        return before

    def wait_estimate_s(self, ticket_id: int, now: float) -> float | None:
        """Seconds until its turn by the pace at which its line moved lately; None while that is unknown.

        A line that stands still makes it grow. Raises KeyError when the ticket does not wait.
        """
        ticket = self._tickets[ticket_id]
        pace = self._paces.get(ticket.model)
        gap_s = None if pace is None else pace.gap_s()
        if pace is None or gap_s is None:
            return None
        passed = 0.0 if pace.since is None else max(0.0, now - pace.since)
        return self.position(ticket_id) * max(gap_s, passed) + max(0.0, gap_s - passed)

    def waiting(self, model: str | None = None) -> int:
        """How many wait, for this model or in all."""
        return len(self._tickets) if model is None else self._counts.get(model, 0)

    def models(self) -> dict[str, int]:
        """How many wait, by model; only those with any."""
        return dict(self._counts)

    def longest_wait_s(self, now: float) -> float:
        """How long the oldest of all has waited; 0 when nobody waits."""
        oldest = next(iter(self._tickets.values()), None)
        return 0.0 if oldest is None else max(0.0, now - oldest.joined_at)

    def retry_after_s(self) -> int:
        """Whole seconds, 1 to 60, after which a refused request should come back.

        That is when half of the longest line is through by its pace, or RETRY_AFTER_S while no pace is known.
        """
        waits = [
            count * gap_s / 2
            for model, count in self._counts.items()
            if (pace := self._paces.get(model)) is not None and (gap_s := pace.gap_s()) is not None
        ]
        return min(RETRY_AFTER_MAX_S, max(1, math.ceil(max(waits)))) if waits else RETRY_AFTER_S

    # Inside

    def _remove(self, ticket: _Ticket) -> None:
        del self._tickets[ticket.number]
        line = self._lines[ticket.model]
        waiting = line[ticket.key]
        del waiting[bisect.bisect_left(waiting, (ticket.order, ticket.number))]
        if not waiting:
            del line[ticket.key]
        if not line:
            del self._lines[ticket.model]
        for counter, name in ((self._counts, ticket.model), (self._by_key, ticket.key)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def _make_place(self, key: str) -> bool:
        """Put out the newest of the key with the most, if that makes the shares more even."""
        if not self._displace or not self._by_key:
            return False
        greedy, count = max(self._by_key.items(), key=lambda item: item[1])
        if count <= self._by_key.get(key, 0) + 1:
            return False
        _, newest = max(line[greedy][-1] for line in self._lines.values() if greedy in line)
        self._displaced.append(newest)
        return self.leave(newest)
