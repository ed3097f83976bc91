"""What happens to nodes, and what their clients notice of it: nothing. Real processes, simulated engines."""

from __future__ import annotations

import re
import time

import httpx

from tests.support.cluster import Process, wait_until
from tests.support.simcluster import SimCluster, SimNode, running, serving, views
from tests.support.traffic import Seen, verdicts

STREAMS = 32
TOKENS = 120
"""Three seconds of a node's work."""


def busiest(fleet: SimCluster, least: int) -> SimNode:
    """The node with the most requests, when every one has some and all have ``least``."""
    router = fleet.routers[0]
    wait_until(lambda: sum(running(router).values()) >= least, 20, f"{least} requests run")
    counts = running(router)
    return max(fleet.nodes, key=lambda node: counts.get(node.node_id, 0))


def failures(router: Process, reason: str) -> int:
    """Attempts that failed for this reason since the router began."""
    text = httpx.get(f"{router.url}/metrics", timeout=10).text
    found = re.search(rf'llmlb_attempt_failures_total{{[^}}]*reason="{reason}"[^}}]*}} (\S+)', text)
    return int(float(found[1])) if found else 0


def all_ok(seen: list[Seen]) -> bool:
    return verdicts(seen) == {"ok": len(seen)}


def test_a_node_killed_under_32_streams_costs_no_client_anything(fleet: SimCluster) -> None:
    traffic = fleet.traffic()
    asked = [traffic.ask(TOKENS) for _ in range(STREAMS)]
    victim = busiest(fleet, STREAMS)
    wait_until(lambda: all(len(one.times) >= 10 for one in list(traffic.under_way)), 20, "every stream runs")
    killed_at = time.monotonic()
    victim.kill()
    seen = [one.result() for one in asked]
    assert verdicts(seen) == {"ok": STREAMS}
    gap_s = max(one.gap_s(killed_at) for one in seen)
    print(f"from the kill to the next token: {gap_s:.2f} s at most")
    assert gap_s < 5
    assert failures(fleet.routers[0], "node_lost") >= STREAMS // 4


def test_nodes_that_are_stopped_for_a_while_lose_their_answers_to_others_and_work_again(fleet: SimCluster) -> None:
    """One for 5 s, one for longer, both beyond the stall limit of 4 s."""
    router = fleet.routers[0]
    traffic = fleet.traffic()
    asked = [traffic.ask(TOKENS) for _ in range(12)]
    busiest(fleet, 12)
    shortly, long = fleet.nodes[0], fleet.nodes[1]
    stopped_at = time.monotonic()
    shortly.suspend()
    long.suspend()
    try:
        wait_until(lambda: time.monotonic() > stopped_at + 5, 10, "5 s are over")
        assert views(router)[long.node_id]["suspect"]
        shortly.go_on()
        wait_until(lambda: time.monotonic() > stopped_at + 6.5, 10, "6.5 s are over")
    finally:
        shortly.go_on()
        long.go_on()
    seen = [one.result() for one in asked]
    assert verdicts(seen) == {"ok": 12}
    print(f"from the stop to the next token: {max(one.gap_s(stopped_at) for one in seen):.2f} s at most")
    wait_until(lambda: serving(router, shortly) and serving(router, long), 20, "they get work again")
    wait_until(lambda: sum(running(router).values()) == 0, 20, "nothing of before runs on")
    assert all_ok([one.result() for one in [traffic.ask(5) for _ in range(9)]])


def test_a_node_that_accepts_and_is_silent_or_drops_a_chunk_is_made_good(fleet: SimCluster) -> None:
    router = fleet.routers[0]
    script = ["hang:0:1", "gap:5:1", "hang:9:1", "gap:0:1"]
    bad = fleet.start_node("bad", *(f"--fault={fault}" for fault in script), model="simulated/faulty")
    good = fleet.start_node("good", model="simulated/faulty")
    try:
        fleet.wait_ready(router, bad, good)
        traffic = fleet.traffic("simulated/faulty")
        before = failures(router, "engine_stalled"), failures(router, "node_lost")
        seen = [one.result() for one in [traffic.ask(40) for _ in range(10)]]
        assert verdicts(seen) == {"ok": 10}
        assert failures(router, "engine_stalled") > before[0], "silence"
        assert failures(router, "node_lost") > before[1], "a gap in the numbering"
    finally:
        fleet.end_nodes(bad, good)


def test_a_node_that_fails_fast_does_not_draw_the_requests_to_it(fleet: SimCluster) -> None:
    router = fleet.routers[0]
    bad = fleet.start_node("fast", "--fault=crash:0:0", model="simulated/fast")
    good = fleet.start_node("sound", "--tokens-per-s=400", model="simulated/fast")
    try:
        fleet.wait_ready(router, bad, good)
        traffic = fleet.traffic("simulated/fast")
        before = failures(router, "engine_crashed")
        seen = [traffic.ask(10).result() for _ in range(40)]
        assert verdicts(seen) == {"ok": 40}
        assert failures(router, "engine_crashed") - before <= 10
    finally:
        fleet.end_nodes(bad, good)


def test_all_nodes_are_restarted_one_by_one_under_load_without_one_error(fleet: SimCluster) -> None:
    router = fleet.routers[0]
    traffic = fleet.traffic()
    # Longer than a node may take to drain: some answers have to move.
    traffic.keep(8, tokens=60)
    for node in list(fleet.nodes):
        assert node.stop() == 0
        fleet.wait_ready(router, fleet.restart_node(node))
    seen = traffic.finish()
    assert len(seen) >= 8
    assert all_ok(seen), verdicts(seen)


def test_a_clock_that_is_wrong_by_a_day_changes_nothing(fleet: SimCluster) -> None:
    router = fleet.routers[0]
    skewed = [
        fleet.start_node(f"skewed{sign}", f"--clock-skew-s={sign}86400", model="simulated/skewed") for sign in ("", "-")
    ]
    try:
        fleet.wait_ready(router, *skewed)
        traffic = fleet.traffic("simulated/skewed")
        assert all_ok([one.result() for one in [traffic.ask(20) for _ in range(8)]])
        known = views(router)
        for node in skewed:
            view = known[node.node_id]
            assert not view["suspect"]
            assert not view["metrics_stale"]
            assert 0 <= view["last_heartbeat_age_s"] < 10
        assert serving(router, skewed[0])
    finally:
        fleet.end_nodes(*skewed)
