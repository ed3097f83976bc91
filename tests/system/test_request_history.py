"""A request that was answered is in the history and in the metrics, of real processes and the real model."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cluster import Cluster, Process, cluster, wait_until


def ask(url: str, tokens: int, *, stream: bool = False) -> None:
    """One question; ``tokens`` tells its record from others."""
    body = {
        "model": httpx.get(f"{url}/v1/models", timeout=10).json()["data"][0]["id"],
        "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": stream,
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text


def past(url: str, tokens: int) -> dict[str, Any] | None:
    """The request that was answered with so many tokens, with all that is known of it."""
    for row in httpx.get(f"{url}/v0/requests?status=ok&limit=500", timeout=10).json().get("requests", []):
        if row["usage"]["completion_tokens"] == tokens:
            whole: dict[str, Any] = httpx.get(f"{url}/v0/requests/{row['request_id']}", timeout=10).json()
            return whole
    return None


def metric(url: str, name: str) -> float:
    """The sum over all labels."""
    text = httpx.get(f"{url}/metrics", timeout=10).text
    return sum(s.value for f in text_string_to_metric_families(text) for s in f.samples if s.name == name)


def test_what_was_asked_is_in_the_history_and_in_the_metrics(served: tuple[Cluster, Process]) -> None:
    _, process = served
    before = metric(process.url, "llmlb_requests_total")
    ask(process.url, 3)
    ask(process.url, 4, stream=True)
    # A request is counted after its last byte went out.
    wait_until(lambda: metric(process.url, "llmlb_requests_total") >= before + 2, 10, "both are counted")
    assert metric(process.url, "llmlb_requests_total") == before + 2
    wait_until(lambda: metric(process.url, "llmlb_requests_running") == 0, 10, "none is running")
    for tokens, streamed in ((3, False), (4, True)):
        found = wait_until(lambda wanted=tokens: past(process.url, wanted), 10, "projected")  # type: ignore[misc]
        assert found["streamed"] is streamed
        assert found["path"] == "/v1/chat/completions"
        assert "capital of Japan" in found["request_body"]
        assert found["answer"]
        assert [attempt["tokens"] for attempt in found["tried"]] == [tokens]
        assert 0 < found["first_token_ms"] <= found["total_ms"]
    # The child says it half a second after the rows are there, as it does the last hour's count.
    wait_until(lambda: metric(process.url, "llmlb_history_up") == 1, 10, "the history is up")
    assert metric(process.url, "llmlb_node_up") == 1
    assert metric(process.url, "llmlb_bus_connected") == 1

    def counted() -> bool:
        return bool(httpx.get(f"{process.url}/v0/status", timeout=10).json()["requests_last_hour"] >= 2)

    wait_until(counted, 10, "the last hour has them")


def test_a_node_counts_what_its_own_gateway_was_asked_and_the_router_remembers_it(
    served: tuple[Cluster, Process],
) -> None:
    _, process = served
    ask(process.node_url, 2)
    assert metric(process.node_url, "llmlb_requests_total") >= 1
    assert metric(process.node_url, "llmlb_node_up") == 1
    assert wait_until(lambda: past(process.url, 2), 10, "the record came over the bus")
    assert httpx.get(f"{process.node_url}/v0/requests", timeout=10).status_code == 404


def test_a_router_that_was_killed_remembers_after_its_restart_what_ended_meanwhile(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        node = it.start("node", "serve", home="node").wait_ready()
        router = it.start("router", "serve", home="router").wait_ready()
        ask(node.url, 2)
        wait_until(lambda: past(router.url, 2), 10, "projected")
        router.kill()
        ask(node.url, 3)
        router = it.start("router", "serve", home="router").wait_ready()
        wait_until(lambda: past(router.url, 3), 10, "read on")
        assert past(router.url, 2)
        status = f"{router.url}/v0/status"
        wait_until(lambda: httpx.get(status, timeout=10).json()["requests_last_hour"] == 2, 10, "counted")
        database = sqlite3.connect(tmp_path / "router" / "router.db")
        assert database.execute("SELECT count(*) FROM requests").fetchone() == (2,)
        database.close()
