"""The waiting line of a gateway as its HTTP clients see it: bounded, fair, cancelled. One node with a single slot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.cluster import Process, wait_until
from tests.support.simcluster import SimCluster, SimNode, running
from tests.support.traffic import Seen, Traffic, verdicts

MODEL = "simulated/queue"
PLACES = 2


@pytest.fixture(scope="module")
def node(shared_fleet: SimCluster) -> Iterator[SimNode]:
    """One slot, 50 tokens a second."""
    made = shared_fleet.start_node("slow", "--slots=1", "--tokens-per-s=50", model=MODEL)
    yield made
    shared_fleet.end_nodes(made)


@pytest.fixture
def line(fleet: SimCluster, node: SimNode) -> Iterator[Traffic]:
    """Clients of the router; afterwards nobody waits and nothing runs."""
    router = fleet.routers[0]
    fleet.wait_ready(router, node)
    traffic = fleet.traffic(MODEL, urls=lambda: [router.url])
    yield traffic
    traffic.close()
    wait_until(lambda: waiting(router) == 0, 10, "those who went away wait no more")
    wait_until(lambda: running(router).get(node.node_id) == 0, 20, "and the slot is free")


def waiting(router: Process) -> int:
    """Requests in this gateway's queue."""
    text = httpx.get(f"{router.url}/metrics", timeout=10).text
    found = re.search(rf'llmlb_requests_waiting{{[^}}]*model="{MODEL}"[^}}]*}} (\S+)', text)
    return int(float(found[1])) if found else 0


def occupy(traffic: Traffic, tokens: int = 5000) -> Future[Seen]:
    """An answer that takes the slot."""
    long = traffic.ask(tokens, key="somebody")
    wait_until(lambda: any(one.times for one in list(traffic.under_way)), 20, "it runs")
    return long


def test_a_key_with_fifty_waiting_requests_does_not_hold_up_another_keys_first(
    fleet: SimCluster, line: Traffic
) -> None:
    router = fleet.routers[0]
    # Half a second each: long beside what a busy machine needs to bring a question here and an answer back.
    many = [line.ask(25, key="greedy") for _ in range(51)]
    wait_until(lambda: waiting(router) >= 45, 60, "they wait")
    first = line.ask(25, key="modest").result()
    assert first.verdict == "ok"
    served = [one for one in line.seen if one is not first]
    before = [one for one in served if one.ended > first.began and one.times[0] < first.times[0]]
    assert len(before) <= 3, "the one that ran, and the one whose turn it was"
    assert waiting(router) > 20
    for one in many:
        one.cancel()


def test_who_waits_is_told_its_place_and_leaves_it_by_going_away(fleet: SimCluster, line: Traffic) -> None:
    router = fleet.routers[0]
    long = occupy(line)
    first, second = line.ask(5, key="one"), line.ask(5, key="two")
    told = lambda: [comment for one in list(line.under_way) for comment in one.comments]  # noqa: E731
    wait_until(lambda: any("x-llmlb-queue-position=1 of 2" in comment for comment in told()), 20, "its place")
    wait_until(lambda: any("x-llmlb-queue-position=0 of 2" in comment for comment in told()), 20, "the first's place")
    first.cancel()
    wait_until(lambda: waiting(router) == 1, 10, "its place is free")
    long.cancel()
    assert second.result().verdict == "ok", "it has the slot of the one that went away"


def test_a_full_line_refuses_and_one_that_waits_too_long_is_told_so(
    fleet: SimCluster, node: SimNode, line: Traffic
) -> None:
    small = fleet.start_router("small", LLMLB_QUEUE_MAX=str(PLACES), LLMLB_QUEUE_TIMEOUT="2s")
    try:
        fleet.wait_ready(small, node)
        traffic = fleet.traffic(MODEL, urls=lambda: [small.url])
        long = occupy(traffic)
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
        with ThreadPoolExecutor(PLACES) as pool:
            posts = [pool.submit(httpx.post, f"{small.url}/v1/chat/completions", json=body, timeout=30) for _ in "ab"]
            wait_until(lambda: waiting(small) == PLACES, 10, "the line is full")
            refused = traffic.ask(5).result()
            assert (refused.status, refused.code) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            expired = [post.result() for post in posts]
        assert [answer.status_code for answer in expired] == [504] * PLACES
        assert {answer.json()["error"]["code"] for answer in expired} == {"deadline_exceeded"}
        assert not long.done(), "the one that runs is not disturbed"
        long.cancel()
        wait_until(lambda: traffic.ask(5).result().verdict == "ok", 20, "it serves again")
        assert verdicts(traffic.seen).get("wrong", 0) == 0
        traffic.close()
    finally:
        small.kill()
        fleet.routers.remove(small)
