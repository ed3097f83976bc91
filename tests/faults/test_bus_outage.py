"""The bus is killed and comes back with its store: what clients get meanwhile and afterwards. Real processes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import nats
import pytest

from llmlb.bus import codec
from llmlb.bus.messages.requests import RequestRecord
from tests.support.cluster import wait_until
from tests.support.simcluster import SimCluster, simcluster, usable, views
from tests.support.traffic import Seen, verdicts

AWAY_S = 10.0
STREAM = "LLMLB_REQUESTS"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCluster]:
    """A router and two nodes; a stall limit that the long outage exceeds."""
    with simcluster(tmp_path_factory.mktemp("outage")) as it:
        it.wait_ready(it.start_router(), it.start_node("a"), it.start_node("b"))
        yield it


async def _records(url: str) -> list[RequestRecord]:
    client = await nats.connect(url)
    try:
        js = client.jetstream()
        state = (await js.stream_info(STREAM)).state
        found = [await js.get_msg(STREAM, seq) for seq in range(max(1, state.first_seq), state.last_seq + 1)]
        return [codec.decode_as(RequestRecord, msg.data or b"") for msg in found]
    finally:
        await client.close()


def recorded(cluster: SimCluster) -> dict[str, set[str]]:
    """How each request ended, by its id, over all records of it."""
    out: dict[str, set[str]] = {}
    for record in asyncio.run(_records(cluster.bus.url)):
        out.setdefault(record.request_id, set()).add(record.status)
    return out


def back_at_work(cluster: SimCluster) -> None:
    """Until every node serves; the processes are those of before."""
    pids = [process.popen.poll() for process in (*cluster.routers, *cluster.nodes)]
    assert pids == [None] * len(pids), "nobody ended"
    cluster.wait_ready(cluster.routers[0], *cluster.nodes)


def each_once(cluster: SimCluster, seen: list[Seen]) -> bool:
    """Whether each answer that began has one record that says how it ended."""
    found = recorded(cluster)
    wanted = {one.request_id: {"ok" if one.verdict == "ok" else "error"} for one in seen if one.verdict != "refused"}
    return found.items() >= wanted.items()


def test_answers_go_on_when_the_bus_was_killed_though_the_nodes_come_back_to_it_after_the_router(
    cluster: SimCluster,
) -> None:
    traffic = cluster.traffic()
    asked = [traffic.ask(80) for _ in range(12)]
    wait_until(lambda: all(len(one.times) >= 5 for one in list(traffic.under_way)) and traffic.under_way, 20, "all run")
    killed_at = time.monotonic()
    for node in cluster.nodes:
        node.suspend()
    cluster.bus.kill()
    cluster.bus.start()
    wait_until(cluster.routers[0].ready, 20, "the router has the bus again")
    for node in cluster.nodes:
        node.go_on()
    seen = [one.result() for one in asked]
    assert verdicts(seen) == {"ok": 12}
    print(f"from the kill to the next token: {max(one.gap_s(killed_at) for one in seen):.2f} s at most")
    back_at_work(cluster)
    wait_until(lambda: each_once(cluster, seen), 10, "each request has its record")


def test_ten_seconds_without_a_bus_under_load_end_in_typed_errors_and_heal_by_themselves(cluster: SimCluster) -> None:
    router = cluster.routers[0]
    traffic = cluster.traffic()
    asked = [traffic.ask(200) for _ in range(8)]
    traffic.keep(2, tokens=20)
    wait_until(lambda: sum(len(one.times) >= 5 for one in list(traffic.under_way)) >= 8, 20, "they run")
    killed_at = time.monotonic()
    cluster.bus.kill()
    wait_until(lambda: httpx.get(f"{router.url}/ready").status_code == 503, 5, "/ready says so")
    refused = traffic.ask(5).result()
    assert (refused.verdict, refused.status, refused.code) == ("refused", 503, "bus_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.ended - refused.began < 2, "at once"
    assert httpx.get(f"{router.url}/health").status_code == 200
    assert httpx.get(f"{router.url}/v1/models").status_code == 200
    wait_until(lambda: time.monotonic() > killed_at + AWAY_S, AWAY_S + 5, "the time is over")
    cluster.bus.start()
    back_at = time.monotonic()
    wait_until(lambda: traffic.ask(5).result().verdict == "ok", 20, "it answers again")
    print(f"first answer {time.monotonic() - back_at:.2f} s after the bus was back")
    for one in asked:
        one.result()
    seen = traffic.finish()
    counts = Counter(one.verdict for one in seen)
    print(verdicts(seen))
    assert set(counts) <= {"ok", "failed", "refused"}, verdicts(seen)
    assert {one.code for one in seen if one.verdict == "failed"} <= {"bus_unavailable"}, verdicts(seen)
    back_at_work(cluster)
    wait_until(lambda: all(usable(view) for view in views(router).values()), 20, "every node gets work")
    wait_until(lambda: each_once(cluster, seen), 10, "each request has its record")
