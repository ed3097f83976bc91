"""The models of a cluster with the commands: a router and a node, real processes, the real model from a local hub."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
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
LIMIT_S = 60


class Site:
    """A router, a node, and the hub they both ask."""

    def __init__(self, it: Cluster, hub: CatalogHub) -> None:
        self.it, self.hub = it, hub
        self.process: Process = it.start("serve", home="one", HF_ENDPOINT=hub.url).wait_ready()
        self.node = self.ask("/v0/nodes")["nodes"][0]["node_id"]

    def ask(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.process.url}{path}", timeout=30).json()
        return found

    def model(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.it.cli("router", "model", *command, host=self.host)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.process.router_port}"

    @contextlib.contextmanager
    def begun(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on beside the test, and is ended whatever happens."""
        with subprocess.Popen(
            [sys.executable, "-m", "llmlb", "router", "model", *command],
            env=self.it.environ(self.it.root / "client", LLMLB_HOST=self.host),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            try:
                yield child
            finally:
                child.kill()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    model = bundled_path()
    assert model is not None
    with CatalogHub() as hub, cluster(tmp_path_factory.mktemp("models")) as it:
        hub.add(REPO, {FILE: model, "README.md": b"# SmolLM2"})
        hub.add_many(1)
        yield Site(it, hub)


def read_until(child: subprocess.Popen[str], part: str) -> str:
    """The first line of its standard error with this in it; the test's own time limit is the cap."""
    assert child.stderr is not None
    seen = []
    for line in child.stderr:
        seen.append(line)
        if part in line:
            return line
    raise AssertionError(f"no {part!r} in {seen}")


def test_a_model_is_found_added_watched_on_its_way_and_deleted(site: Site) -> None:
    found = site.model("list", "smollm2", "--quant", "q4_1")
    assert (found.returncode, found.stderr) == (0, "")
    (row,) = found.stdout.splitlines()[1:]
    assert row.split()[:3] == [NAME, "98", "MB"]
    assert row.split()[-1] == FILE

    site.hub.budget = MIB
    added = site.model("add", REPO, "--file", FILE, "--alias", "tiny", "--name", "Tiny", "--node", site.node[:6])
    assert (added.returncode, added.stdout) == (0, f"registered '{NAME}', 98 MB: 1 node fetches it\n"), added.stderr
    again = site.model("add", NAME)
    assert (again.returncode, again.stdout) == (1, "")
    assert "registered already. See what is there with: llmlb router model supported" in again.stderr

    with site.begun("download", "tiny", "--all") as child:
        assert read_until(child, "downloading") == f"downloading {NAME} on 1 node\n"
        read_until(child, "% ")
        child.send_signal(signal.SIGINT)
        _, rest = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "The downloads go on in the nodes." in rest
    assert "Cancel them: llmlb router model download tiny --all --cancel" in rest
    assert "downloading" in next(line for line in site.model("supported").stdout.splitlines() if NAME in line)

    cancelled = site.model("download", "tiny", "--node", site.node[:6], "--cancel", "--purge")
    assert cancelled.returncode == 0, cancelled.stderr
    assert cancelled.stdout.endswith(": cancelled\n")
    # What was cancelled is begun anew, and its old end is not taken for the new one.
    with site.begun("download", NAME, "--node", site.node[:6], "--json") as child:
        read_until(child, "downloading")
        site.hub.release()
        out, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 0, err
    assert [task["task"]["status"] for task in json.loads(out)["tasks"]] == ["completed"]
    assert "100% 98 MB" in err
    twice = site.model("download", NAME, "--all")
    assert twice.returncode == 0, twice.stderr

    def ready() -> Any:
        models = json.loads(site.model("supported", "--json").stdout)
        return next((model for model in models if model["id"] == NAME and model["nodes_ready"] == 1), None)

    assert wait_until(ready, LIMIT_S, "it is ready")["aliases"] == ["tiny"]
    gone = site.model("rm", "tiny", "own/nothing")
    assert (gone.returncode, gone.stdout) == (1, f"deleted '{NAME}': 1 node removes its files\n")
    assert gone.stderr.startswith("Error: the model 'own/nothing'")
    wait_until(lambda: not (site.it.root / "one" / "models" / REPO).exists(), LIMIT_S, "the files are gone")


def test_what_the_hub_has_not_or_can_not_say_is_one_line(site: Site) -> None:
    assert site.model("list", "model-0000").returncode == 0
    for command, says in (
        (["add", "own/nothing"], "own/nothing"),
        (["add", REPO, "--file", "other.gguf"], f"has no file other.gguf; it has {FILE}"),
        (["download", "own/nothing", "--all"], "own/nothing"),
        (["download", "own/nothing", "--all", "--cancel"], "own/nothing"),
        (["add", REPO, "--node", "zz"], "'zz'"),
    ):
        done = site.model(*command)
        assert (done.returncode, done.stdout) == (1, ""), command
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
        assert says in line
