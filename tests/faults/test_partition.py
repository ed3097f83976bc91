"""Three hosts, and one cable that is cut and mended: network namespaces stand in for the hosts."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import netns
from tests.support.cluster import wait_until
from tests.support.simcluster import simcluster, usable, views
from tests.support.traffic import verdicts

BUS, NEAR, FAR = 1, 2, 3
"""Hosts: bus, router and clients; a node; the node whose cable is cut."""


def test_a_cut_cable_costs_no_client_anything_and_the_node_returns_by_itself_when_it_is_mended(tmp_path: Path) -> None:
    if (reason := netns.why_not()) is not None:
        pytest.skip(reason)
    lan = netns.Lan(3)
    try:
        # Threads and processes that a thread starts are on its host.
        with ThreadPoolExecutor(1, initializer=lan.enter(BUS)) as on_host:
            on_host.submit(_cut_and_mend, lan, tmp_path).result()
    finally:
        lan.close()


def _cut_and_mend(lan: netns.Lan, root: Path) -> None:
    with simcluster(root, bus_host="0.0.0.0") as it:
        url = f"nats://{lan.address(BUS)}:{it.bus.port}"
        router = it.start_router(module="tests.support.impatient_router")
        near = it.start_node("near", inside=lan.command(NEAR), LLMLB_BUS_URL=url)
        far = it.start_node("far", inside=lan.command(FAR), LLMLB_BUS_URL=url)
        it.wait_ready(router, near, far)
        traffic = it.traffic()
        asked = [traffic.ask(100) for _ in range(12)]
        wait_until(lambda: sum(len(one.times) >= 5 for one in list(traffic.under_way)) == 12, 20, "all run")
        lan.cut(FAR)
        cut_at = time.monotonic()
        wait_until(lambda: views(router)[far.node_id]["suspect"], 10, "it is suspect")
        seen = [one.result() for one in asked]
        assert verdicts(seen) == {"ok": 12}
        print(f"from the cut to the next token: {max(one.gap_s(cut_at) for one in seen):.2f} s at most")
        wait_until(lambda: views(router)[far.node_id]["state"] == "offline", 20, "it is offline")
        assert verdicts(one.result() for one in [traffic.ask(5) for _ in range(4)]) == {"ok": 4}
        lan.mend(FAR)
        mended_at = time.monotonic()
        wait_until(lambda: usable(views(router)[far.node_id]), 60, "it is back")
        print(f"back {time.monotonic() - mended_at:.1f} s after the cable was mended")
        again = [traffic.ask(60) for _ in range(8)]
        wait_until(lambda: views(router)[far.node_id]["running"] > 0, 20, "it gets work")
        assert verdicts(one.result() for one in again) == {"ok": 8}
        assert far.popen.poll() is None, "nobody started it again"
