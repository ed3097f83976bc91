"""Pulling with the command: a local hub, real processes, the real model; from nothing to an answer and away again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pexpect
import pytest

from llmlb.node.store.bundled import bundled_path
from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.hub import LocalHub

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
FILE = "SmolLM2-135M-Instruct-Q4_1.gguf"
BIG = "own/big"
BIG_BYTES = 24 * 1024 * 1024


class Pulling:
    """A hub, and a bus, a router and a node that pull from it."""

    def __init__(self, it: Cluster, hub: LocalHub) -> None:
        self.it, self.hub = it, hub
        self.process: Process = it.start("serve", home="one").wait_ready()

    def node(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.it.cli("node", *command, host=self.host)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.process.node_port}"

    def task(self, model: str) -> dict[str, Any]:
        """The state of a pull, without changing it."""
        tasks = httpx.get(f"{self.process.node_url}/v0/tasks").json()["tasks"]
        found: dict[str, Any] = next(task for task in tasks if task["model"] == model)
        return found

    def terminal(self, *command: str) -> pexpect.spawn[str]:
        return pexpect.spawn(
            sys.executable,
            ["-m", "llmlb", "node", *command],
            env={**self.it.environ(self.it.root / "client", LLMLB_HOST=self.host), "TERM": "xterm"},
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=30,
        )

    def hold_after(self, count: int) -> None:
        """The hub sends so many bytes more, then holds back."""
        self.hub.budget = count


@pytest.fixture(scope="module")
def pulling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulling]:
    model = bundled_path()
    assert model is not None
    with LocalHub() as hub, cluster(tmp_path_factory.mktemp("pull"), HF_ENDPOINT=hub.url) as it:
        hub.add(REPO, {FILE: model, "README.md": b"# SmolLM2"})
        hub.add(BIG, {"big-Q4_K_M.gguf": gguf(model)})
        hub.add("own/gated", {"a-Q4_K_M.gguf": b"GGUF" * 10}, gated=True)
        hub.add("own/empty", {"README.md": b"nothing here"})
        yield Pulling(it, hub)


def gguf(model: Path) -> bytes:
    """The beginning of a real one: enough to be read, too little to be run."""
    with model.open("rb") as file:
        return file.read(BIG_BYTES)


@pytest.fixture(autouse=True)
def free_hub(pulling: Pulling) -> Iterator[None]:
    yield
    pulling.hub.behave()
    pulling.hub.release()


def test_from_nothing_to_an_answer_and_away_again(pulling: Pulling) -> None:
    done = pulling.node("pull", REPO)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    sha256 = pulling.hub.repos[REPO].commits[pulling.hub.repos[REPO].head][FILE].sha256
    lines = [line for line in done.stderr.splitlines() if "100%" in line or "%" not in line]
    assert lines == [
        "pulling manifest ✓",
        f"pulling {sha256[:12]}... 100% 98 MB",
        "verifying sha256 digest ✓",
        "writing manifest ✓",
        "success",
    ]
    (model,) = [each for each in json.loads(pulling.node("list", "--json").stdout) if each["source"] == "HuggingFace"]
    name, alias = model["name"], model["aliases"][0]
    assert re.search(rf"^{re.escape(name)} +98 MB +(Just now|\d+ \w+ ago)$", pulling.node("list").stdout, re.MULTILINE)
    shown = pulling.node("show", alias).stdout.splitlines()
    assert [line.strip().split(":")[0] for line in shown] == [
        "Model",
        "Architecture",
        "Parameters",
        "Quantization",
        "Context Length",
        "Format",
        "Size",
        "License",
        "Aliases",
    ]
    assert shown[0] == f"Model: {name}"
    for option, holds in [
        ("--license", "\n"),
        ("--parameters", "llama.context_length"),
        ("--modelfile", "FROM /"),
        ("--template", "<|im_start|>"),
        ("--system", "\n"),
    ]:
        assert holds in pulling.node("show", name, option).stdout
    answer = pulling.node("run", alias, "What is the capital of Japan?")
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout) > 5
    assert re.search(rf"^{re.escape(name)} +[0-9a-f]{{12}} +\d+ MB +100% CPU +4 minutes +- +-$", ps(pulling), re.M)
    removed = pulling.node("rm", alias)
    assert (removed.returncode, removed.stdout) == (0, f"deleted '{name}'\n"), removed.stderr
    assert name not in ps(pulling)
    assert name not in pulling.node("list").stdout


def ps(pulling: Pulling) -> str:
    return pulling.node("ps").stdout


def test_ctrl_c_lets_it_go_on_a_second_pull_attaches_and_cancel_ends_it(pulling: Pulling) -> None:
    pulling.hold_after(BIG_BYTES // 2)
    child = pulling.terminal("pull", BIG)
    child.expect(r"pulling [0-9a-f]{12}\.\.\. [1-9]\d?% ▓")
    child.sendcontrol("c")
    child.expect_exact("The pull goes on in the node.")
    child.expect_exact(f"llmlb node pull --cancel {BIG}")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert pulling.task(BIG)["status"] == "downloading"
    again = pulling.terminal("pull", BIG)
    again.expect(r"pulling [0-9a-f]{12}\.\.\. [1-9]\d?% ▓")
    cancelled = pulling.node("pull", BIG, "--cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    first, second = cancelled.stdout.splitlines()
    assert first == f"cancelled '{BIG}'"
    assert second.endswith(f"are kept for another pull; drop them with: llmlb node pull --cancel --purge {BIG}")
    again.expect_exact("Error: the pull was cancelled")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 1
    purged = pulling.node("pull", BIG, "--cancel", "--purge")
    assert (purged.returncode, purged.stdout) == (0, f"cancelled '{BIG}'\n"), purged.stderr


def test_what_the_hub_asks_to_wait_for_is_shown_and_goes_away(pulling: Pulling) -> None:
    pulling.hub.misbehave(status=429, retry_after="2")
    child = pulling.terminal("pull", BIG)
    child.expect(r"429.*next try in")
    child.expect_exact("success")
    child.expect(r"run it with: llmlb node run \S+\r\n")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert pulling.node("rm", BIG).returncode == 0


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("own/gated", "HF_TOKEN"),
        ("own/unknown", "own/unknown"),
        ("own/empty", "own/empty"),
        ("../etc/passwd", "bad model name"),
        ("no name", "bad model name"),
    ],
)
def test_what_can_not_be_pulled_is_one_line_and_exit_1(pulling: Pulling, model: str, says: str) -> None:
    done = pulling.node("pull", model)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert says in line


def test_what_is_not_there_can_neither_be_cancelled_nor_removed(pulling: Pulling) -> None:
    for command in (["pull", "--cancel", "own/never"], ["rm", "own/never"], ["rm", "smollm2"]):
        done = pulling.node(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: ")


def test_a_node_that_is_killed_in_between_is_waited_for(pulling: Pulling) -> None:
    pulling.hold_after(BIG_BYTES // 2)
    old = pulling.process
    child = pulling.terminal("pull", BIG)
    child.expect(r"pulling [0-9a-f]{12}\.\.\. [1-9]\d?% ▓")
    old.kill()
    child.expect_exact("trying again for")
    ports = ("--port", str(old.router_port), "--node-port", str(old.node_port))
    pulling.process = pulling.it.start("serve", *ports, home="one")
    pulling.process.node_port, pulling.process.router_port = old.node_port, old.router_port
    pulling.process.wait_ready()
    pulling.hub.release()
    child.expect_exact("success", timeout=60)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    wait_until(lambda: pulling.task(BIG)["status"] == "completed", 5, "it is over")
