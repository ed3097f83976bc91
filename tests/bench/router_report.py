"""The tables of the router's benchmark, and how it is measured in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tests.bench import report
from tests.bench.peers import PEERS
from tests.bench.report import Bar, Check
from tests.bench.router_scenarios import CONCURRENCY, STREAMS
from tests.bench.router_targets import DIRECT, FLOOR, OURS

Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Values by figure and target, one each round."""

NAMES = (DIRECT, FLOOR, OURS, *(peer.name for peer in PEERS))
REQUEST_BAR, CHUNK_BAR = Bar(3.1), Bar(2.3)
"""The bars of issue 5 (0.25 ms a request, 0.025 a chunk) over the floor that it measured (0.081 and 0.011): a machine
that is slower than its machine is slower at both."""
PARTS = {"gateway": "the gateway", "bus": "the bus", "backend": "backend or nodes"}


def _cell(table: Table, key: str, name: str) -> str:
    return report.number(report.median(table.get(key, {}).get(name, [])))


def added(table: Table, key: str, name: str) -> float | None:
    """What a target takes more than the direct call: the median over the rounds of the differences."""
    direct, other = table.get(key, {}).get(DIRECT, []), table.get(key, {}).get(name, [])
    return report.median([b - a for a, b in zip(direct, other, strict=False)])


def over_floor(table: Table, key: str) -> float | None:
    """What llmlb takes over what the floor takes in the same round: the median of the ratios."""
    floor, ours = table.get(key, {}).get(FLOOR, []), table.get(key, {}).get(OURS, [])
    return report.median([b / a for a, b in zip(floor, ours, strict=False) if a])


def _rows(table: Table) -> list[list[str]]:
    rows = []

    def row(title: str, unit: str, cell: Callable[[str], str]) -> None:
        rows.append([title, unit, *(cell(name) for name in NAMES)])

    def plain(title: str, unit: str, key: str) -> None:
        row(title, unit, lambda name: _cell(table, key, name))

    for clients in CONCURRENCY:
        for part, words in PARTS.items():
            plain(f"CPU a request, {clients} at a time: {words}", "ms", f"cpu.{clients}.{part}")
        for share in ("p50", "p99"):
            key = f"{share}.{clients}"
            row(
                f"latency {share}, {clients} at a time; direct, then added",
                "ms",
                lambda name, key=key: (  # type: ignore[misc]
                    _cell(table, key, name) if name == DIRECT else report.number(added(table, key, name))
                ),
            )
        plain(f"requests, {clients} at a time", "1/s", f"rate.{clients}")
    for streams in STREAMS:
        for part, words in PARTS.items():
            plain(f"CPU a chunk, {streams} streams: {words}", "ms", f"chunk.{streams}.{part}")
        plain(f"chunks, {streams} streams", "1/s", f"chunks.{streams}")
        plain(f"tokens in a chunk, {streams} streams", "", f"merged.{streams}")
    for share, words in (
        ("p50", "p50, 16 streams"),
        ("p99", "p99, 16 streams"),
        ("burst", "of the last of 16 at once"),
    ):
        key = f"first.{share}"
        row(
            f"time to first token {words}; direct, then added",
            "ms",
            lambda name, key=key: (  # type: ignore[misc]
                _cell(table, key, name) if name == DIRECT else report.number(added(table, key, name))
            ),
        )
    plain("streams open at once", "", "held.open")
    plain("  memory of the gateway for each of them", "KB", "held.kb")
    plain("  answers that were not whole", "", "held.failed")
    return rows


def figures_table(table: Table) -> str:
    return report.table(("figure", "unit", *NAMES), _rows(table), left=(0, 1))


def checks(table: Table, streams: int) -> list[Check]:
    """What the whole gateway must reach, with admission, placement and records on."""

    def ours(key: str) -> float | None:
        return report.median(table.get(key, {}).get(OURS, []))

    def beside(share: str) -> str:
        floor = report.number(added(table, share, FLOOR))
        return f"the floor adds {floor} ms in the same rounds"

    opened, least = ours("held.open"), Bar(streams, at_least=True)
    return [
        *[
            Check(
                f"CPU of the gateway a request, {clients} at a time, ÷ floor", "", over_floor(table, key), REQUEST_BAR
            )
            for clients, key in ((clients, f"cpu.{clients}.gateway") for clients in (16, 64))
        ],
        *[
            Check(f"CPU of the gateway a chunk, {count} streams, ÷ floor", "", over_floor(table, key), CHUNK_BAR)
            for count, key in ((count, f"chunk.{count}.gateway") for count in STREAMS)
        ],
        Check("CPU of the gateway a request, 16 at a time", "ms", ours("cpu.16.gateway"), Bar(0.25)),
        Check(
            "CPU of the gateway a chunk, 16 streams, their requests included",
            "ms",
            ours("chunk.16.gateway"),
            Bar(0.025),
        ),
        Check(
            "added time to first token p50, 16 streams",
            "ms",
            added(table, "first.p50", OURS),
            Bar(2.5),
            beside("first.p50"),
        ),
        Check(
            "added time to first token p99, 16 streams",
            "ms",
            added(table, "first.p99", OURS),
            Bar(8),
            beside("first.p99"),
        ),
        Check("streams open at once", "", opened, least),
        Check("  of them, not whole at their end", "", ours("held.failed"), Bar(0)),
        Check("  memory of the gateway for each", "KB", ours("held.kb"), Bar(100)),
    ]


METHOD = """\
A real `llmlb router serve` with everything on, a nats-server, simulated nodes in one process, the clients in another.
The same simulated engine (a script at 100 tokens a second a stream, in steps of 2 ms, so that chunks are not merged
before they reach the gateway) as a lean HTTP server is *direct*, and what the other routers stand in front of.
*Floor* is a bare Sanic that hands a request to a responder over nats-py, and its bytes back unread. All processes run
for the whole time; one is measured at a time, in turn and in changing order. Medians of the rounds.

- *CPU* is what the kernel counts for all threads of a process and its children (`/proc/PID/task/*/schedstat`), idle
  work included, divided by the requests or chunks that clients got. *A chunk* is an event with text; its request is
  included. Machines with few cores merge tokens when they can't follow: *tokens in a chunk* says how far.
- *÷ floor*: the gateway's CPU over the floor's in the same round, median of the rounds. Its bars, 3.1 and 2.3, are the
  issue's own bars over the floor of its machine (0.25 / 0.081 ms a request, 0.025 / 0.011 ms a chunk). The absolute
  bars stand beside them as they are; on a machine of another speed they say little.
- *Short requests*: one token, not streamed, connections kept alive, each client one after the other. *Added*: the
  percentile less the direct call's of the same round.
- *Time to first token*: 16 clients, answers of 10 to 50 tokens, one after the other; the clients begin within half a
  second. *Of the last of 16 at once*: all begin in the same millisecond, so it is what 16 requests cost in a row.
- *Open streams*: all open at once, a token every two seconds; what the gateway's resident memory grew by, over their
  number, and whether each answer came whole. Measured first, while the processes are fresh.
- *Failover*: three nodes as processes of their own, streams of 150 tokens at 40 a second, each text compared word for
  word; one node is killed with `kill -9`, again and again. The silence holds the detection, the new placement and the
  continuation.
"""
