"""Routers that die: another one serves on, and one that starts again knows everything. Real processes."""

from __future__ import annotations

import time

import httpx

from tests.support.cluster import wait_until
from tests.support.simcluster import MODEL, SimCluster, serving
from tests.support.traffic import verdicts


def models(url: str) -> list[str]:
    return [model["id"] for model in httpx.get(f"{url}/v1/models", timeout=5).json()["data"]]


def test_a_router_killed_under_load_knows_its_cluster_again_soon_after_its_start(fleet: SimCluster) -> None:
    router = fleet.routers[0]
    traffic = fleet.traffic()
    traffic.keep(8, tokens=40)
    wait_until(lambda: len(traffic.seen) >= 8, 20, "it is under load")
    router.kill()
    again = fleet.start_router(port=router.router_port or 0)
    fleet.routers.remove(router)  # not before: there is always one that the clients ask
    wait_until(again.ready, 30, "/ready")
    ready_at = time.monotonic()
    wait_until(lambda: all(serving(again, node) for node in fleet.nodes), 30, "it has every node at work")
    wait_until(lambda: MODEL in models(again.url), 30, "it lists their model")  # told apart from their heartbeats
    rebuilt_s = time.monotonic() - ready_at
    print(f"state rebuilt {rebuilt_s:.2f} s after /ready")
    assert rebuilt_s < 10
    wait_until(lambda: any(one.began > ready_at for one in list(traffic.seen)), 20, "it serves again")
    seen = traffic.finish()
    # A client of a killed router sees its connection end, or none; at the new one it waits until the nodes were heard.
    assert set(verdicts(seen)) <= {"ok", "broken", "refused bus_unavailable"}, verdicts(seen)
    assert all(one.verdict == "ok" for one in seen if one.began > ready_at), verdicts(seen)


def test_two_routers_serve_the_same_nodes_and_either_may_die(fleet: SimCluster) -> None:
    first = fleet.routers[0]
    second = fleet.start_router("router2")
    fleet.wait_ready(second, *fleet.nodes)
    traffic = fleet.traffic()
    try:
        assert models(first.url) == models(second.url)
        asked = [traffic.ask(80) for _ in range(16)]
        wait_until(lambda: sum(len(one.times) >= 5 for one in list(traffic.under_way)) == 16, 20, "all run")
        second.kill()
        seen = [one.result() for one in asked]
        assert verdicts(one for one in seen if one.url == first.url) == {"ok": 8}
        assert verdicts(one for one in seen if one.url == second.url) == {"broken": 8}
        after = [one.result() for one in [traffic.ask(10) for _ in range(8)]]
        assert verdicts(after) == {"ok": 8}
    finally:
        second.kill()
        fleet.routers.remove(second)
