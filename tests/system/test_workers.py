"""Several gateway processes of one router on one port: ``llmlb router serve --workers N``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cluster import cluster, wait_until


def children(pid: int) -> list[int]:
    """Process ids whose parent is ``pid``, running ``--worker``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == pid and b"--worker\0" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(found)


def listeners(port: int) -> int:
    """How many sockets listen on a port of this machine."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)


def assert_alike(url: str, *, answered: int) -> None:
    """Status and metrics say the same of all processes, whichever of them answers."""

    def status() -> list[int]:
        return [httpx.get(url + "/v0/status").json()["requests_last_hour"] for _ in range(9)]

    wait_until(lambda: status() == [answered] * 9, 30, "every process knows of all requests")

    def scraped() -> str:
        # A process that is too slow to answer is left out of a scrape.
        text, deadline = "", time.monotonic() + 30
        while time.monotonic() < deadline and not all(
            f'llmlb_bus_connected{{process="{number}"}}' in text for number in range(3)
        ):
            text = httpx.get(url + "/metrics").text
        return text

    for _ in range(9):
        text = scraped()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        ended = [sample for sample in samples if sample.name == "llmlb_requests_total"]
        assert sum(sample.value for sample in ended) == answered
        assert [s.labels["process"] for s in samples if s.name == "llmlb_history_up"] == ["0"]
        assert {s.labels["process"] for s in samples if s.name == "llmlb_bus_connected"} == {"0", "1", "2"}


def test_workers_share_a_port_come_back_when_killed_and_end_with_the_router(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        router = it.start("router", "serve", "--workers", "3", home="router")
        router.wait_ready()
        port = int(router.url.rsplit(":", 1)[1])
        wait_until(lambda: listeners(port) == 3, 60, "three processes listen")
        node = it.start("node", "serve", home="node")
        node.wait_ready()
        # Every connection may reach another process, and each of them has the whole view.
        wait_until(lambda: all(httpx.get(router.url + "/v1/models").json()["data"] for _ in range(12)), 30, "one view")
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        for _ in range(6):
            answer = httpx.post(router.url + "/v1/chat/completions", json=body, timeout=120)
            assert answer.status_code == 200, answer.text
        assert_alike(router.url, answered=6)
        first, *_ = before = children(router.popen.pid)
        assert len(before) == 2
        os.kill(first, signal.SIGKILL)
        # Its memory goes before its sockets do: only when it was waited for does it listen no more.
        wait_until(lambda: not Path(f"/proc/{first}").exists(), 10, "it is gone")
        assert all(httpx.get(router.url + "/health").status_code == 200 for _ in range(12))
        wait_until(lambda: listeners(port) == 3, 60, "it is back")
        last = children(router.popen.pid)
        router.stop()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in last), 15, "none outlives the router")
