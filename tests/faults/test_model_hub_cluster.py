"""A router and three nodes, real processes with real pulls of the real model: registered, ready, asked, deleted; and
what goes wrong on the way."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.node.store.bundled import bundled_path
from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.hub_catalog import CatalogHub

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
FILE = "SmolLM2-135M-Instruct-Q4_1.gguf"
NAME = f"{REPO}:Q4_1"
MIB = 1024 * 1024
LIMIT_S = 90


class Site:
    """Three nodes and a router, which calls the hub by another name than they do."""

    def __init__(self, it: Cluster, hub: CatalogHub) -> None:
        self.it, self.hub = it, hub
        self.router: Process = it.start("router", "serve", home="router", HF_ENDPOINT=self.routers_hub)
        self.router.wait_ready()
        self.nodes = [self.start(number) for number in range(3)]
        wait_until(lambda: self.online() == 3, LIMIT_S, "three nodes are online")

    @property
    def routers_hub(self) -> str:
        return self.hub.url.replace("127.0.0.1", "localhost")

    def start(self, number: int) -> Process:
        return self.it.start("node", "serve", home=f"node{number}", HF_ENDPOINT=self.hub.url)

    def restart(self, number: int) -> None:
        self.nodes[number] = self.start(number)
        wait_until(lambda: self.online() == 3, LIMIT_S, "three nodes are online")

    def ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        return httpx.request(method, f"{self.router.url}{path}", timeout=30, **what)

    def online(self) -> int:
        return int(self.ask("GET", "/v0/status").json()["nodes_online"])

    def register(self, **what: Any) -> httpx.Response:
        return self.ask("POST", "/v0/models/register", json={"repo": REPO, **what})

    def model(self, name: str = NAME) -> dict[str, Any] | None:
        models: list[dict[str, Any]] = self.ask("GET", "/v0/models/hub").json()["models"]
        return next((model for model in models if model["id"] == name), None)

    def ready(self, count: int = 3) -> None:
        wait_until(lambda: (model := self.model()) and model["nodes_ready"] == count, LIMIT_S, f"{count} nodes ready")

    def listed(self) -> list[str]:
        return [model["id"] for model in self.ask("GET", "/v1/models").json()["data"]]

    def chat(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
        return self.ask("POST", "/v1/chat/completions", json=body)

    def folders(self) -> list[Path]:
        return [folder for n in range(3) if (folder := self.it.root / f"node{n}" / "models" / REPO).exists()]

    def clean(self) -> None:
        """As at the beginning, whatever a test has left."""
        self.hub.release()
        self.hub.outage, self.hub.allowed = None, None
        for number, node in enumerate(self.nodes):
            if node.popen.poll() is not None:
                self.restart(number)
        for model in self.ask("GET", "/v0/models/hub").json()["models"]:
            if model["registered_at"] is not None:
                self.ask("DELETE", f"/v0/models/{model['id']}")
        wait_until(lambda: not self.folders(), LIMIT_S, "the models are gone from every node")
        wait_until(lambda: REPO not in self.listed(), LIMIT_S, "the router knows it")


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    model = bundled_path()
    assert model is not None
    with CatalogHub() as hub, cluster(tmp_path_factory.mktemp("hub")) as it:
        hub.add(REPO, {FILE: model, "README.md": b"# SmolLM2"})
        yield Site(it, hub)


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    shared_site.clean()
    yield shared_site
    shared_site.hub.release()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_registered_model_gets_ready_on_three_nodes_answers_and_is_deleted_from_all(site: Site) -> None:
    served, size = site.hub.served(), site.hub.repos[REPO].commits[site.hub.repos[REPO].head][FILE].size
    site.hub.budget = 0
    made = site.register(aliases=["tiny"], display_name="Tiny")
    assert made.status_code == 201
    assert made.json()["record"]["manifest"]["files"][0]["size_bytes"] == size
    waiting = wait_until(
        lambda: (answer := site.chat("tiny")).status_code == 503 and answer, 10, "it is known to be on its way"
    )
    assert waiting.json()["error"]["code"] == "model_downloading"
    assert "% of" in waiting.json()["error"]["message"] or "not begun" in waiting.json()["error"]["message"]
    assert 1 <= int(waiting.headers["Retry-After"]) <= 60
    assert NAME not in site.listed()
    site.hub.release()
    site.ready()
    wait_until(lambda: REPO in site.listed(), 10, "the list of models follows")
    for name in (NAME, REPO, "tiny"):
        assert site.chat(name).status_code == 200, name
    tasks = site.ask("GET", f"/v0/tasks/{NAME.replace('/', '%2F')}").json()["tasks"]
    assert [task["task"]["status"] for task in tasks] == ["completed"] * 3
    # Each node fetched it once, and the router nothing but metadata.
    assert 3 * size <= site.hub.served() - served <= 3 * size + 3 * 8 * MIB
    by_router = [path for host, path in site.hub.asked_as if host.startswith("localhost")]
    assert by_router
    assert all(path.startswith("/api/models") for path in by_router)
    assert size_of(site.it.root / "router") < size // 2
    gone = site.ask("DELETE", f"/v0/models/{NAME}")
    assert (gone.status_code, len(gone.json()["nodes"])) == (200, 3)
    wait_until(lambda: REPO not in site.listed(), 10, "the list of models follows")
    wait_until(lambda: not site.folders(), LIMIT_S, "the files are gone from every node")
    assert site.chat("tiny").status_code == 404
    assert site.ask("DELETE", f"/v0/models/{NAME.replace('/', '%2F')}").status_code == 404


def test_a_node_killed_during_its_download_goes_on_when_it_is_back(site: Site) -> None:
    size = site.hub.repos[REPO].commits[site.hub.repos[REPO].head][FILE].size
    served = site.hub.served()
    site.hub.budget = size
    assert site.register().status_code == 201
    node_id = wait_until(
        lambda: next((n["node_id"] for n in (site.model() or {"nodes": []})["nodes"] if n["downloaded_bytes"]), None),
        LIMIT_S,
        "bytes flow",
    )
    number = next(n for n in range(3) if (site.it.root / f"node{n}" / "node_id").read_text().strip() == node_id)
    site.nodes[number].kill()
    site.hub.release()
    site.ready(2)
    site.restart(number)
    site.ready(3)
    assert site.hub.served() - served <= 3 * size + 3 * 8 * MIB


def test_of_two_administrators_one_is_first_and_the_other_is_told(site: Site) -> None:
    site.hub.budget = 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(site.register, display_name=f"admin {n}") for n in range(4)]
        answers = [one.result() for one in asked]
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    (won,) = (answer.json() for answer in answers if answer.status_code == 201)
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["existing"]["display_name"] == won["record"]["display_name"]
            assert answer.json()["error"]["code"] == "conflict"


def test_a_model_of_60_gb_is_registered_with_a_warning(site: Site) -> None:
    site.hub.add_paper("own/huge", {"huge-Q8_0.gguf": 60 * 10**9})
    node = site.ask("GET", "/v0/nodes").json()["nodes"][0]["node_id"]
    made = site.ask("POST", "/v0/models/register", json={"repo": "own/huge", "nodes": [node]})
    assert made.status_code == 201
    assert any("60.0 GB" in warning for warning in made.json()["warnings"])
    assert site.ask("DELETE", "/v0/models/own/huge:Q8_0").status_code == 200


def test_with_the_hub_away_the_list_stands_and_the_rest_says_so(site: Site) -> None:
    site.hub.add_paper("own/unseen", {"unseen-Q4_0.gguf": 10**9})
    site.hub.outage = "500"
    assert site.model("Qwen/Qwen3-8B-GGUF:Q4_K_M") is not None
    unseen = site.ask("POST", "/v0/models/register", json={"repo": "own/unseen"})
    for answer in (unseen, site.ask("GET", "/v0/models/catalog?q=never-asked")):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "hub_unavailable"
        assert int(answer.headers["Retry-After"]) >= 1
    site.hub.outage = None
    first = wait_until(
        lambda: (page := site.ask("GET", "/v0/models/catalog?q=smollm2")).status_code == 200 and page.json(),
        30,
        "the hub is asked again",
    )
    assert first["models"][0]["variants"][0]["id"] == NAME
    site.hub.outage = "closes"
    assert site.ask("GET", "/v0/models/catalog?q=smollm2").json()["models"] == first["models"]
    site.hub.outage = None


def test_a_node_that_is_away_removes_a_deleted_model_when_it_is_back(site: Site) -> None:
    assert site.register().status_code == 201
    site.ready()
    site.nodes[0].kill()
    assert site.ask("DELETE", f"/v0/models/{NAME}").status_code == 200
    wait_until(lambda: len(site.folders()) == 1, LIMIT_S, "two nodes have removed it")
    site.restart(0)
    wait_until(lambda: not site.folders(), LIMIT_S, "the third has removed it too")


def test_a_download_is_cancelled_and_asked_for_again_over_http(site: Site) -> None:
    site.hub.budget = MIB
    assert site.register().status_code == 201
    wait_until(lambda: (site.model() or {})["status"] == "downloading", LIMIT_S, "it is on its way")
    done = wait_until(
        lambda: (answer := site.ask("DELETE", f"/v0/tasks/{NAME}?purge=1")).status_code == 200 and answer.json(),
        LIMIT_S,
        "the downloads are cancelled",
    )
    assert {task["task"]["status"] for task in done["tasks"]} == {"cancelled"}
    node = done["tasks"][0]["node_id"]
    site.hub.release()
    again = site.ask("POST", f"/v0/models/{NAME}/download", json={"nodes": [node[:12]]})
    assert again.status_code == 202
    assert [task["node_id"] for task in again.json()["tasks"]] == [node]
    wait_until(lambda: (site.model() or {})["nodes_ready"] >= 1, LIMIT_S, "it is there")
    for body, status in (({}, 400), ({"all": True, "nodes": [node]}, 400), ({"nodes": ["ffffff"]}, 404)):
        assert site.ask("POST", f"/v0/models/{NAME}/download", json=body).status_code == status
    assert site.ask("POST", "/v0/models/own/nothing/download", json={"all": True}).status_code == 404
