"""``python -m tests.bench.router_micro``: what the router's decisions cost. Prints a table, asserts nothing."""

from __future__ import annotations

import itertools
import random
import time
import timeit
from collections.abc import Callable

from llmlb.router.admission import Queue
from llmlb.router.affinity import Cuts, PrefixMap
from llmlb.router.breaker import Breakers
from llmlb.router.placement import Ask, Row, Table, place

ROUNDS = 9


def show(title: str, what: Callable[[], object], number: int = 1000) -> None:
    """CPU time of one call: the best of some rounds, as the machine has other things to do."""
    best = min(timeit.repeat(what, number=number, repeat=ROUNDS, timer=time.thread_time)) / number
    print(f"{title:55} {best * 1e6:8.1f} µs", flush=True)


def made_table(nodes: int, *, equal: bool) -> Table:
    dice = random.Random(1)
    table = Table()
    for number in range(nodes):
        speed = 1.0 if equal else dice.uniform(0.3, 3.0)
        running = 1 if equal else dice.randint(0, 6)
        table.put(f"node{number:04}", Row(True, "ready", 4, running, 1000.0 * speed, 50.0 * speed, 8.0))
    return table


def placement(nodes: int) -> None:
    plain = Ask(prompt_tokens=900, max_tokens=128)
    warm = {f"node{number:04}": 400 for number in range(4)}
    full = Ask(900, 128, warm=warm, exclude=frozenset({"node0001"}), queued=7)
    table = made_table(nodes, equal=True)
    show(f"place, {nodes} equal nodes", lambda: place(table, plain))
    table = made_table(nodes, equal=False)
    show(f"place, {nodes} different nodes", lambda: place(table, plain))
    show("  with 4 warm, 1 excluded, a queue", lambda: place(table, full))

    def decide_and_count() -> None:
        found = place(table, plain)
        assert found is not None
        table.add(found.node_id, 1)
        table.add(found.node_id, -1)

    show("  and counted at begin and end", decide_and_count)
    numbers = itertools.count()

    def beat() -> None:
        number = next(numbers)
        row = Row(True, "ready", 4, number % 4, 1000.0 + number % 97, 50.0 + number % 7, 8.0)
        table.put(f"node{number % nodes:04}", row)

    show("  a heartbeat with changed speeds", beat, 2000)


def admission(keys: int) -> None:
    queue, numbers = Queue(10_001), itertools.count()

    def join() -> None:
        number = next(numbers)
        queue.join(number, "m", f"key{number % keys}", 0.0, 1e9)

    for _ in range(10_000):
        join()

    def turn() -> None:
        join()
        head = queue.next("m")
        assert head is not None
        queue.admit(head, 0.0)

    show(f"join, next, admit; 10,000 wait, {keys} keys", turn, 300)
    tickets = [next(numbers) - 1 - back for back in range(0, 9000, 30)]
    waiting = itertools.cycle(tickets)
    show("  position", lambda: queue.position(next(waiting)), 300)


def prefixes(title: str, parts: list[str]) -> None:
    prefix_map = PrefixMap()
    # Fresh strings, as Python keeps the hash of a string it hashed before; their making is measured beside it.
    fresh = ["".join((part[:1], part[1:])) for part in parts]
    show(f"{title}: the strings made anew", lambda: ["".join((part[:1], part[1:])) for part in fresh])

    def prompt() -> Cuts:
        return Cuts("m", ["".join((part[:1], part[1:])) for part in fresh])

    def both() -> None:
        asked = prompt()
        prefix_map.lookup(asked)
        prefix_map.remember(asked, "node", 0.0)

    prefix_map.remember(prompt(), "node", 0.0)
    show("  and looked up", lambda: prefix_map.lookup(prompt()))
    show("  and remembered", both)


def main() -> None:
    for nodes in (10, 100, 1000):
        placement(nodes)
    for keys in (1, 100, 10_000):
        admission(keys)
    message = "word " * 205
    prefixes("4 KB in 4 messages", [f"{number}{message}" for number in range(4)])
    prefixes("4 KB in 100 messages", [f"{number}: some words of small talk, few." for number in range(100)])
    prefixes("64 KB in 64 messages", [f"{number}{message}" for number in range(64)])
    prefixes("64 KB in one message", ["".join(f"{number}{message}" for number in range(64))])
    made = Breakers()
    made.failed("node0", "m", 0.0, 0.1)
    show("breaker", lambda: made.allows("node0", "m", 9.0), 10_000)


if __name__ == "__main__":
    main()
