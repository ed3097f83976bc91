"""Admission: a request goes to a node when a slot is free there, and waits its turn otherwise.

The waiting places of one gateway are bounded and fair between API keys (:mod:`llmlb.router.admission`); who may go is
looked at whenever something may have changed: a request ended, a heartbeat came, a breaker's time is over.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmlb.bus.errors import DeadlineExceeded, LlmlbError, NoCapableNode, QueueFull
from llmlb.router.admission import Queue
from llmlb.router.loads import Loads
from llmlb.router.placement import Ask, Placement

Place = tuple[Placement, str]
"""A placement, and the model's name on that node."""


@dataclass(slots=True)
class Ticket:
    """One waiting request."""

    number: int
    model: str
    key: str
    ask: Ask
    joined_at: float
    line: str
    """Which of the queue's it waits in."""
    placed_at: float = 0.0
    turn: asyncio.Future[Place] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Gate:
    """Places requests of one gateway. Whoever gets a place has it counted already: call ``loads.ended`` after it."""

    def __init__(
        self, loads: Loads, *, most: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.queue = Queue(most, displace=True)
        self._loads = loads
        self._timeout_s = timeout_s
        self._clock = clock
        self._tickets: dict[int, Ticket] = {}
        self._numbers = itertools.count(1)
        loads.on_room = self._maybe_room
        self._due: set[str] = set()
        self._served: dict[str, int] = {}
        """When each line was served last, of those in which somebody waits; counts up."""
        self._turns = itertools.count(1)
        self._scheduled = False

    def now(self, model: str, ask: Ask) -> Place | None:
        """A free slot, if there is one and nobody waits for this model."""
        if self._tickets and self.waiting(model):
            return None
        return self._take(model, ask)

    def waiting(self, model: str) -> int:
        """How many wait for a model, by whichever of its names."""
        return self.queue.waiting(self._loads.line(model)) if self._tickets else 0

    def anyhow(self, model: str, ask: Ask) -> Place | None:
        """A node, even if the request has to wait there: for what is under way already."""
        found = self._loads.place(model, ask)
        if found is not None:
            self._loads.started(found[0].node_id, found[1])
        return found

    def _take(self, model: str, ask: Ask) -> Place | None:
        found = self._loads.place(model, ask)
        if found is None or found[0].waits:
            return None
        self._loads.started(found[0].node_id, found[1])
        return found

    def join(self, model: str, key: str, ask: Ask) -> Ticket:
        """Wait. Raises QueueFull. :meth:`leave` must be called in the end, whatever happens."""
        now = self._clock()
        ticket = Ticket(next(self._numbers), model, key, ask, now, self._loads.line(model))
        self.queue.join(ticket.number, ticket.line, key, now, now + self._timeout_s)
        self._tickets[ticket.number] = ticket
        for number in self.queue.displaced():
            full = QueueFull("others wait with fewer requests and went first; try again")
            full.retry_after_s = self.queue.retry_after_s()
            self._end(self._tickets[number], full)
        self._serve([ticket.line])
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """It does not wait any more. A place that nobody took is given back."""
        self._tickets.pop(ticket.number, None)
        self.queue.leave(ticket.number)
        if ticket.turn.done() and not ticket.turn.cancelled() and ticket.turn.exception() is None:
            self._give_back(ticket.turn.result(), ticket.placed_at)

    def taken(self, ticket: Ticket) -> Place:
        """The place of a ticket whose turn came; the ticket is over. Raises what ended it."""
        self._tickets.pop(ticket.number, None)
        return ticket.turn.result()

    def position(self, ticket: Ticket) -> tuple[int, float | None]:
        """(requests before it, estimate of its wait in s or None)."""
        position = self.queue.position(ticket.number)
        return position, self.queue.wait_estimate_s(ticket.number, self._clock())

    def _maybe_room(self, model: str) -> None:
        """Look at this model's waiters soon: once for all that happens in this turn of the loop."""
        if self._tickets and self.waiting(model):
            self._due.add(self._loads.line(model))
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        due, self._due = self._due, set()
        self._serve(sorted(due, key=lambda line: self._served.get(line, 0)))

    def _serve(self, lines: list[str]) -> None:
        """Let go who may. Lines take turns: nodes that do not agree on a model's name make several of its own."""
        while lines:
            lines = [line for line in lines if self._serve_one(line)]

    def _serve_one(self, line: str) -> bool:
        """Let the first of a line go, if it may. False: it may not, or there is none."""
        number = self.queue.next(line)
        if number is None:
            return False
        ticket = self._tickets[number]
        # All who wait count: where the line is long, one more node is worth loading.
        place = self._take(ticket.model, ticket.ask._replace(queued=self.queue.waiting(line) - 1))
        if place is None:
            return False
        self._served[line] = next(self._turns)
        self.queue.admit(number, self._clock())
        ticket.placed_at = self._clock()
        if ticket.turn.done():  # it was cancelled in this turn of the loop
            self._give_back(place, ticket.placed_at)
        else:
            ticket.turn.set_result(place)
        return True

    def _give_back(self, place: Place, placed_at: float) -> None:
        """Nobody went there. If it was a breaker's probe, the next one is."""
        placement, name = place
        self._loads.abandoned(placement.node_id, name, placed_at)
        self._loads.ended(placement.node_id, name)

    def tick(self) -> None:
        """Time has passed: those whose time is over go, and the rest is looked at again."""
        now = self._clock()
        for number in self.queue.expired(now):
            ticket = self._tickets[number]
            self._end(ticket, DeadlineExceeded(f"no slot became free within {now - ticket.joined_at:.0f} s"))
        for model, line in {(ticket.model, ticket.line) for ticket in self._tickets.values() if not ticket.turn.done()}:
            if not self._loads.has(model):
                self._end_all(model)
                continue
            if line != self._loads.line(model):
                self._move(model, self._loads.line(model), now)
            self._maybe_room(model)
        if self._served:
            self._served = {line: turn for line, turn in self._served.items() if self.queue.waiting(line)}

    def _move(self, model: str, line: str, now: float) -> None:
        """The nodes call the model something else now: those who wait for it do so in another line, at its end."""
        for ticket in self._tickets.values():
            if ticket.model == model and ticket.line != line and self.queue.leave(ticket.number):
                ticket.line = line
                self.queue.join(ticket.number, line, ticket.key, now, ticket.joined_at + self._timeout_s)

    def _end_all(self, model: str) -> None:
        for ticket in [one for one in self._tickets.values() if one.model == model]:
            self.queue.leave(ticket.number)
            self._end(ticket, NoCapableNode(f"no node has model '{model}' any more"))

    def end_of(self, key: str, error: Callable[[], LlmlbError]) -> None:
        """Those of one key or user wait no more."""
        for ticket in [one for one in self._tickets.values() if one.key == key]:
            self.queue.leave(ticket.number)
            self._end(ticket, error())

    @staticmethod
    def _end(ticket: Ticket, error: LlmlbError) -> None:
        if not ticket.turn.done():
            ticket.turn.set_exception(error)
            ticket.turn.exception()  # marks it as seen
