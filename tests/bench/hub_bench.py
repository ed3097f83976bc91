"""The catalog against a slow hub, the list of models against a dead one, and how soon a change is seen (issue 8)."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.bench import about, report
from tests.bench.report import Bar, Check
from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.hub_catalog import CatalogHub
from tests.support.pulls import gguf_bytes

TITLE = "Models of the cluster and the hub"
LATENCY_S = 0.3
QUERIES, QUICK_QUERIES = 20, 5
PAGE = 50
LISTS = 50
CHANGES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("hub")
    group.add_argument("--queries", type=int, help=f"searches that nobody made before ({QUERIES})")


def run(arguments: argparse.Namespace) -> str:
    """Measure; the text of this part."""
    measured = about.Measured()
    queries = arguments.queries or (QUICK_QUERIES if arguments.quick else QUERIES)
    with tempfile.TemporaryDirectory(prefix="llmlb-bench-") as name, CatalogHub() as hub:
        for number in range(queries):
            hub.add_many(PAGE + 10, prefix=f"own/query{number:03}")
        hub.add("own/model", {"model-Q4_0.gguf": gguf_bytes(1 << 20, "Q4_0")})
        with cluster(Path(name), HF_ENDPOINT=hub.url) as it:
            router = it.start("router", "serve", home="router").wait_ready()
            checks = [*_catalog(hub, router, queries), *_list(hub, router), *_changes(hub, it, router)]
    lines = [*about.lines(), measured.line()]
    return "\n\n".join(["\n".join(lines), report.checks_table(checks), f"### Method of the hub\n\n{METHOD}"])


def _seconds(call: Callable[[], httpx.Response]) -> float:
    began = time.perf_counter()
    answer = call()
    taken = time.perf_counter() - began
    answer.raise_for_status()
    return taken


def _catalog(hub: CatalogHub, router: Process, queries: int) -> list[Check]:
    hub.api_latency_s = LATENCY_S
    with httpx.Client(base_url=router.url, timeout=30) as client:
        pages = [f"/v0/models/catalog?q=query{number:03}&limit={PAGE}" for number in range(queries)]
        new = [_seconds(lambda page=page: client.get(page)) for page in pages]  # type: ignore[misc]
        missing = [page for page in pages if client.get(page).json()["note"]]
        again = [_seconds(lambda page=page: client.get(page)) for page in pages]  # type: ignore[misc]
    hub.api_latency_s = 0.0
    note = f"{queries} searches nobody made before, {PAGE} models with 6 variants each; {len(missing)} without sizes"
    return [
        Check("a new page of the catalog, mean", "s", statistics.mean(new), Bar(1), note),
        Check("a new page of the catalog, 95th percentile", "s", _p95(new), Bar(3), f"worst {max(new):.2f}"),
        Check("the same pages again, mean", "s", statistics.mean(again), None, "out of what is kept"),
    ]


def _list(hub: CatalogHub, router: Process) -> list[Check]:
    hub.outage = "hangs"
    with httpx.Client(base_url=router.url, timeout=30) as client:
        client.get("/v0/models/hub")
        taken = [_seconds(lambda: client.get("/v0/models/hub")) for _ in range(LISTS)]
        count = len(client.get("/v0/models/hub").json()["models"])
    hub.outage = None
    hub.hanging.set()
    note = f"{count} models, {LISTS} times while the hub takes connections and says nothing"
    return [Check("the list of models with a dead hub, worst", "s", max(taken), Bar(0.5), note)]


def _changes(hub: CatalogHub, it: Cluster, router: Process) -> list[Check]:
    """From a change to the list of models that can be used."""
    it.start("node", "serve", home="node").wait_ready()
    ready, gone, shown = list[float](), list[float](), list[float]()
    with httpx.Client(base_url=router.url, timeout=30) as client:

        def listed() -> bool:
            return any(model["id"] == "own/model" for model in client.get("/v1/models").json()["data"])

        def state() -> str | None:
            models = client.get("/v0/models/hub").json()["models"]
            return next((model["lifecycle_status"] for model in models if model["id"] == "own/model:Q4_0"), None)

        wait_until(lambda: client.get("/v0/status").json()["nodes_online"] == 1, 60, "the node is online")
        wait_until(lambda: client.post("/v0/models/register", json={"repo": "own/model"}).is_success, 60, "the hub")
        for number in range(CHANGES):
            if number:
                client.post("/v0/models/register", json={"repo": "own/model"}).raise_for_status()
            began = time.perf_counter()
            wait_until(lambda: state() in ("pending", "ready"), 60, "a pull is shown")
            shown.append(time.perf_counter() - began)
            wait_until(lambda: state() == "ready", 60, "it is ready")
            began = time.perf_counter()
            wait_until(listed, 60, "it is listed")
            ready.append(time.perf_counter() - began)
            client.delete("/v0/models/own/model:Q4_0").raise_for_status()
            began = time.perf_counter()
            wait_until(lambda: not listed(), 60, "it is not listed any more")
            gone.append(time.perf_counter() - began)
    return [
        Check("registered → progress is shown, worst", "s", max(shown), Bar(1), f"{CHANGES} times"),
        Check("ready at /v0/models/hub → listed at /v1/models, worst", "s", max(ready), Bar(1)),
        Check("deleted → not listed at /v1/models, worst", "s", max(gone), Bar(1)),
    ]


def _p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, round(0.95 * len(values)))]


METHOD = f"""\
A hub that speaks the Hub's API on loopback and waits {LATENCY_S * 1000:.0f} ms before each answer of its metadata
API, in the process of the benchmark; a real `llmlb router serve` and `llmlb node serve`. One request after the other.

- *A new page*: `GET /v0/models/catalog` for words nobody asked for: one search, and one request for each repository.
- *Dead hub*: it takes connections and never answers.
- *Registered →*: from the answer to the request for the change; the file has 1 MiB."""
