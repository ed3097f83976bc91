"""A pull goes on after whatever dies: node, bus, router, all of them. Real processes, killed for real."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from llmlb.bus import subjects
from llmlb.node.store.bundled import bundled_path
from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.hub import LocalHub
from tests.support.natsd import NatsServer
from tests.support.pulls import MIB, gguf_bytes

FILE = "model-Q4_K_M.gguf"
SIZE = 24 * MIB + 123
DATA = gguf_bytes(SIZE)
MOST_TWICE = 8 * MIB


class Site:
    """A hub, a bus and processes that use both."""

    def __init__(self, hub: LocalHub, bus: NatsServer, it: Cluster) -> None:
        self.hub, self.bus, self.it = hub, bus, it
        self.repo = "own/model"
        """What this test pulls: nothing of an earlier one's counts for it."""
        self._node: Process | None = None

    def node(self) -> Process:
        """The one that runs, or a new one over its store."""
        if self._node is None or self._node.popen.poll() is not None:
            self._node = self.it.start("node", "serve", home="node").wait_ready()
        return self._node

    @property
    def model_folder(self) -> Path:
        return self.models / self.repo

    @property
    def models(self) -> Path:
        return self.it.root / "node" / "models"

    def pull(self, node: Process, budget: int | None = None) -> str:
        """Begin one, and with a budget wait until so much is out; the task's id."""
        self.hub.budget = budget
        before = self.hub.served()
        answer = httpx.post(f"{node.node_url}/v0/models/pull", json={"model": self.repo}, timeout=20)
        assert answer.status_code == 202, answer.text
        if budget is not None:
            wait_until(lambda: self.hub.served() - before >= budget // 2, 20, "bytes come")
        return str(answer.json()["task"]["task_id"])

    def task(self, node: Process, task_id: str) -> dict[str, Any]:
        answer = httpx.get(f"{node.node_url}/v0/tasks/{task_id}", timeout=20)
        return dict(answer.json())

    def over(self, node: Process, task_id: str) -> dict[str, Any]:
        """The task when it is over."""

        def look() -> dict[str, Any] | None:
            found = self.task(node, task_id)
            return found if found.get("status") in ("completed", "failed", "cancelled") else None

        return dict(wait_until(look, 60, f"the pull is over; log:\n{node.output()}"))

    def check(self, node: Process, task_id: str) -> None:
        """It is whole, came nearly once, and its task is gone from the bus."""
        assert self.over(node, task_id)["status"] == "completed"
        content = (self.model_folder / FILE).read_bytes()
        assert hashlib.sha256(content).digest() == hashlib.sha256(DATA).digest()
        assert self.hub.served(self.repo) - SIZE <= MOST_TWICE
        assert not list(self.models.rglob("*.part*"))
        wait_until(lambda: asyncio.run(self._queued()) == 0, 20, "the task is acked")

    async def _queued(self) -> int:
        client = await nats.connect(self.bus.url)
        try:
            return (await client.jetstream().stream_info(subjects.STREAM_PULLS)).state.messages
        finally:
            await client.close()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One hub, one bus and one node for all tests: they kill and start what they need."""
    root = tmp_path_factory.mktemp("pulls")
    bus = NatsServer(root / "bus").start()
    with LocalHub() as hub, cluster(root, HF_ENDPOINT=hub.url, LLMLB_EMBEDDED_BUS="false") as it:
        it.bus_port = bus.port
        yield Site(hub, bus, it)
        hub.release()
    bus.stop()


@pytest.fixture
def site(everything: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    everything.repo = f"own/{request.node.name[:60]}"
    everything.hub.add(everything.repo, {FILE: DATA})
    yield everything
    everything.hub.release()


def test_a_node_that_is_killed_goes_on_with_its_pull(site: Site) -> None:
    node = site.node()
    task = site.pull(node, 14 * MIB)
    node.kill()
    assert not site.model_folder.exists(), "nothing can be seen before it is whole"
    site.hub.release()
    again = site.node()
    site.check(again, task)


def test_a_bus_that_is_killed_does_not_stop_a_pull(site: Site) -> None:
    node = site.node()
    task = site.pull(node, 8 * MIB)
    site.bus.kill()
    site.hub.release()
    wait_until((site.model_folder / FILE).exists, 60, f"it goes on without a bus; log:\n{node.output()}")
    site.bus.start()
    wait_until(node.ready, 30, "the node is back on the bus")
    site.check(node, task)


def test_a_router_that_is_killed_does_not_touch_a_pull(site: Site) -> None:
    router = site.it.start("router", "serve", home="router").wait_ready()
    node = site.node()
    task = site.pull(node, 8 * MIB)
    router.kill()
    site.hub.release()
    site.check(node, task)


def test_a_node_that_is_told_to_stop_ends_soon_and_goes_on_later(site: Site) -> None:
    node = site.node()
    task = site.pull(node, 14 * MIB)
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 20, "a pull is not waited for"
    assert "Traceback" not in node.output()
    assert list((site.models / ".pulling").rglob("*.part"))
    site.hub.release()
    again = site.node()
    site.check(again, task)


def test_everything_killed_at_once_goes_on(tmp_path: Path) -> None:
    """Bus, router and node in one process: the bus's store is all that knows of the pull."""
    with LocalHub() as hub, cluster(tmp_path, HF_ENDPOINT=hub.url) as it:
        site = Site(hub, NatsServer(tmp_path / "unused"), it)
        hub.add(site.repo, {FILE: DATA})
        first = it.start("serve", home="node").wait_ready()
        task = site.pull(first, 14 * MIB)
        first.kill()
        hub.release()
        again = it.start("serve", home="node").wait_ready()
        site.bus.url = it.bus_url
        site.check(again, task)


def test_a_pull_is_cancelled_and_purged_over_http(site: Site) -> None:
    node = site.node()
    task = site.pull(node, 4 * MIB)
    kept = httpx.delete(f"{node.node_url}/v0/tasks/{task}", timeout=30)
    assert kept.status_code == 200, kept.text
    assert kept.json()["task"]["status"] == "cancelled"
    assert kept.json()["kept_bytes"] > 0
    assert httpx.delete(f"{node.node_url}/v0/tasks/{task}", timeout=30).status_code == 409
    assert httpx.delete(f"{node.node_url}/v0/tasks/{'0' * 16}", timeout=30).status_code == 404
    assert httpx.get(f"{node.node_url}/v0/tasks/{'0' * 16}", timeout=30).status_code == 404
    gone = httpx.delete(f"{node.node_url}/v0/tasks/{site.repo}", params={"purge": "1"}, timeout=30)
    assert (gone.status_code, gone.json()["kept_bytes"]) == (200, 0)
    assert not list(site.models.rglob("*.part"))


def test_a_pulled_model_is_listed_shown_asked_and_removed(site: Site) -> None:
    source = bundled_path()
    assert source is not None
    site.repo = "real/SmolLM2-135M-Instruct-GGUF"
    site.hub.add(site.repo, {source.name: source, "README.md": b"# SmolLM2"})
    node = site.node()
    done = site.over(node, site.pull(node))
    assert done["status"] == "completed", done
    names = [model["name"] for model in httpx.get(f"{node.node_url}/v0/models", timeout=20).json()["models"]]
    assert done["name"] in names
    shown = httpx.get(f"{node.node_url}/v0/models/{done['alias']}", timeout=20).json()
    assert (shown["model"]["name"], shown["model"]["source"]) == (done["name"], "HuggingFace")
    wait_until(lambda: _asked(node, done["alias"]).status_code == 200, 60, "it answers")
    running = httpx.get(f"{node.node_url}/v0/ps", timeout=20).json()["models"]
    assert [model["name"] for model in running] == [done["name"]]
    removed = httpx.delete(f"{node.node_url}/v0/models/{done['name']}", timeout=60)
    assert removed.status_code == 200, removed.text
    assert removed.json()["freed_bytes"] >= source.stat().st_size
    assert httpx.get(f"{node.node_url}/v0/ps", timeout=20).json()["models"] == []
    wait_until(lambda: _asked(node, done["name"]).status_code == 404, 20, "it is gone")
    assert httpx.delete(f"{node.node_url}/v0/models/smollm2", timeout=20).status_code == 403, "bundled: read-only"


def _asked(node: Process, model: str) -> httpx.Response:
    question = {"role": "user", "content": "What is the capital of Japan?"}
    body = {"model": model, "temperature": 0, "max_tokens": 4, "messages": [question]}
    return httpx.post(f"{node.node_url}/v1/chat/completions", json=body, timeout=60)
