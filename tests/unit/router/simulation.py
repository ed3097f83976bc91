"""A cluster in a few lines: events in order of time, real placement, made-up nodes."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from llmlb.router.placement import Ask, Placement, Row, Table, place


def ready(running: int = 0, *, slots: int = 4, prefill: float | None = 1000.0, decode: float | None = 50.0) -> Row:
    return Row(usable=True, state="ready", slots=slots, running=running, prefill_tps=prefill, decode_tps=decode)


def cold(running: int = 0, *, load_s: float | None = 10.0, fits: bool = True) -> Row:
    return Row(usable=True, state="cold", slots=0, running=running, load_s=load_s, fits=fits)


def loading(running: int = 1, *, left_s: float = 5.0, slots: int = 0) -> Row:
    return Row(usable=True, state="loading", slots=slots, running=running, load_s=left_s)


def table(seed: str = "", **rows: Row) -> Table:
    made = Table(seed)
    for node_id, row in rows.items():
        made.put(node_id, row)
    return made


def chosen(where: Table, ask: Ask) -> Placement:
    found = place(where, ask)
    assert found is not None
    return found


@dataclass
class Node:
    """Its slots run side by side, each at the full speed."""

    slots: int
    prefill: float
    decode: float
    measured: bool = True
    """False: it tells its speeds once a request has ended there."""
    running: int = 0
    waiting: deque[Ask] = field(default_factory=deque)

    def row(self) -> Row:
        row = ready(self.running + len(self.waiting), slots=self.slots, prefill=self.prefill, decode=self.decode)
        return row if self.measured else replace(row, prefill_tps=None, decode_tps=None)

    def seconds(self, ask: Ask) -> float:
        return ask.prompt_tokens / self.prefill + ask.max_tokens / self.decode


class Cluster:
    """Requests come, wait at the gateway when no slot is free (``gateway_queue``) or at their node, and end."""

    def __init__(self, nodes: dict[str, Node], *, seed: int = 1, gateway_queue: bool = True) -> None:
        self.nodes = nodes
        self.table = table(**{name: node.row() for name, node in nodes.items()})
        self.begun: Counter[str] = Counter()
        self.now = 0.0
        self._gateway_queue = gateway_queue
        self._line: deque[Ask] = deque()
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, str | None, Ask]] = []
        self._numbers = itertools.count()

    def run(self, requests: int, per_s: float) -> Counter[str]:
        """So many requests at random times, at this rate on average; how many began on each node by the last one."""
        at = self.now
        for _ in range(requests):
            at += self._random.expovariate(per_s)
            ask = Ask(prompt_tokens=self._random.randint(100, 900), max_tokens=self._random.randint(50, 200))
            self._push(at, None, ask)
        last = at
        while self._events and self._events[0][0] <= last:
            self.now, _, name, ask = heapq.heappop(self._events)
            if name is None:
                self._line.append(ask)
            else:
                self._ended(name, ask)
            self._serve()
        return self.begun

    def _push(self, at: float, name: str | None, ask: Ask) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), name, ask))

    def _serve(self) -> None:
        while self._line:
            found = chosen(self.table, self._line[0]._replace(queued=len(self._line) - 1))
            if found.waits and self._gateway_queue:
                return
            ask = self._line.popleft()
            self.table.add(found.node_id, 1)
            node = self.nodes[found.node_id]
            if node.running < node.slots:
                self._begin(found.node_id, ask)
            else:
                node.waiting.append(ask)

    def _begin(self, name: str, ask: Ask) -> None:
        self.nodes[name].running += 1
        self.begun[name] += 1
        self._push(self.now + self.nodes[name].seconds(ask), name, ask)

    def _ended(self, name: str, ask: Ask) -> None:
        node = self.nodes[name]
        node.running -= 1
        self.table.finished(ask.prompt_tokens, ask.max_tokens)
        self.table.add(name, -1)
        if node.waiting:
            self._begin(name, node.waiting.popleft())
        if not node.measured:
            node.measured = True
            self.table.put(name, node.row())
