"""kill -9 of a node under load: how long a client waits for the next word, and what is lost."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from tests.bench.report import Bar, Check
from tests.support.cluster import wait_until
from tests.support.simcluster import SimCluster, simcluster
from tests.support.traffic import Seen, verdicts

NODES = 3
CLIENTS = 24
TOKENS = 150
TOKENS_PER_S = "40"
KILLS = 7
QUICK_KILLS = 2
LEAD_S = 2.0
"""Of load before and after a kill: longer than any stream is silent."""


def longest_silence(seen: list[Seen], killed_at: float) -> float:
    """Seconds between two pieces of text of a stream that ran at that moment, the longest of all streams."""
    return max((one.gap_s(killed_at) for one in seen if one.times and one.times[0] < killed_at), default=0.0)


def measure(folder: Path, *, quick: bool) -> list[Check]:
    folder.mkdir()
    kills: list[float] = []
    with simcluster(folder, LLMLB_QUEUE_MAX="1000") as it:
        router = it.start_router()
        for number in range(NODES):
            it.start_node(f"node{number}", "--tokens-per-s", TOKENS_PER_S)
        it.wait_ready(router, *it.nodes)
        traffic = it.traffic()
        traffic.keep(CLIENTS, TOKENS)
        for _ in range(QUICK_KILLS if quick else KILLS):
            kills.append(_kill(it))
            it.wait_ready(router, *it.nodes)
        seen = traffic.finish()
    silences = [1000 * longest_silence(seen, at) for at in kills]
    found = verdicts(seen)
    lost = sum(count for verdict, count in found.items() if verdict != "ok")
    print(f"failover: {found}, silences {[round(one) for one in silences]} ms", file=sys.stderr, flush=True)
    load = f"{CLIENTS} streams on {NODES} nodes, {len(kills)} kills"
    return [
        Check(
            "failover: longest silence of any stream after kill -9 of a node, median",
            "ms",
            statistics.median(silences),
            Bar(1000),
            load,
        ),
        Check("failover: the same, worst of all kills", "ms", max(silences), Bar(1000), load),
        Check("failover: requests lost, or with a wrong text", "", float(lost), Bar(0), f"of {len(seen):,}"),
    ]


def _kill(it: SimCluster) -> float:
    """Kill a node in the midst of its work and start it again; when that was, on the monotonic clock."""
    time.sleep(LEAD_S)
    node = it.nodes[0]
    at = time.monotonic()
    node.kill()
    time.sleep(LEAD_S)
    it.restart_node(node)
    wait_until(lambda: len(it.nodes) == NODES, 1, "the node is started again")
    return at
