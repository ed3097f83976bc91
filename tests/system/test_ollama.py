"""Models of an Ollama store through a real node: the real model's file as a blob."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from llmlb.node.store.bundled import bundled_path
from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.ollama import OllamaStore

QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
ANSWER = "The capital of Japan is Tokyo."


@dataclass
class Site:
    """A node over an Ollama store."""

    cluster: Cluster
    node: Process
    store: OllamaStore
    before: str
    """The store's fingerprint before the node saw it."""

    def ask(self, model: str, **more: Any) -> dict[str, Any]:
        body = {"model": model, "messages": QUESTION, **more}
        answer = httpx.post(f"{self.node.url}/v1/chat/completions", json=body, timeout=90)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def cli(self, *command: str) -> tuple[int, str, str]:
        done = self.cluster.cli("node", *command, host=f"127.0.0.1:{self.node.node_port}")
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("ollama")
    store = OllamaStore(root / "store")
    file = bundled_path()
    assert file is not None
    blob = store.blob("model", file)
    store.add("smollm2", blob, store.blob("params", {"temperature": 0}), store.blob("template", "{{ .Prompt }}"))
    tuned = {"temperature": 0, "num_predict": 4, "stop": ["capital"], "num_ctx": 512}
    store.add("me/tuned:v1", blob, store.blob("params", tuned), store.blob("system", "You are a pirate."))
    gone = store.blob("model", b"GGUF, or so")
    store.path_of(gone).unlink()
    store.add("broken", gone)
    for path in [*store.root.rglob("*"), store.root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = store.fingerprint()
    with cluster(root, OLLAMA_MODELS=str(store.root), LLMLB_KEEP_ALIVE="-1", LLMLB_CONTEXT_LENGTH="") as it:
        node = it.start("node", "serve", home="one").wait_ready()
        wait_until(lambda: httpx.get(f"{node.url}/v1/models").json()["data"], 10, "models at the gateway")
        yield Site(it, node, store, before)
    for path in [store.root, *store.root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_list_marks_them_read_only_and_leaves_the_broken_one_out(site: Site) -> None:
    code, out, _ = site.cli("list")
    assert code == 0
    names = [line.split("  ")[0] for line in out.splitlines()[1:]]
    assert sorted(names) == ["ollama:me/tuned:v1 (readonly)", "ollama:smollm2 (readonly)", *names[2:]]
    assert "broken" not in out
    log = site.node.output()
    assert log.count("ollama:broken") == 1
    assert "is missing" in log


def test_it_answers(site: Site) -> None:
    assert site.ask("ollama:smollm2")["choices"][0]["message"]["content"] == ANSWER
    code, out, err = site.cli("run", "ollama:smollm2", QUESTION[0]["content"])
    assert (code, err) == (0, "")
    assert out.strip()


def test_its_parameters_are_defaults_and_the_requests_own_win(site: Site) -> None:
    plain = site.ask("ollama:me/tuned:v1")
    bare = site.ask("ollama:smollm2")
    choice = plain["choices"][0]
    assert plain["usage"]["completion_tokens"] <= 4
    assert "capital" not in choice["message"]["content"]
    running = httpx.get(f"{site.node.url}/v0/ps", timeout=10).json()["models"]
    assert {row["name"]: row["context_length"] for row in running}["ollama:me/tuned:v1"] == 512
    own = site.ask(
        "ollama:me/tuned:v1",
        max_tokens=20,
        stop="\n\n\n",
        messages=[
            {"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
            *QUESTION,
        ],
    )
    assert own["choices"][0]["message"]["content"] == ANSWER
    assert own["usage"]["prompt_tokens"] == bare["usage"]["prompt_tokens"]
    assert plain["usage"]["prompt_tokens"] < bare["usage"]["prompt_tokens"], "the shorter system prompt of its own"


def test_show_tells_template_system_prompt_and_parameters(site: Site) -> None:
    _, system, _ = site.cli("show", "ollama:me/tuned:v1", "--system")
    assert system.strip() == "You are a pirate."
    _, parameters, _ = site.cli("show", "ollama:me/tuned:v1", "--parameters")
    assert "num_ctx" in parameters
    _, template, _ = site.cli("show", "ollama:smollm2", "--template")
    assert "im_start" in template


def test_nothing_was_written_there(site: Site) -> None:
    """Not by an answer, nor by what is refused: the store's files and folders are read-only, too."""
    site.ask("ollama:smollm2", max_tokens=1)
    assert httpx.delete(f"{site.node.url}/v0/models/ollama:smollm2", timeout=10).status_code == 403
    assert site.node.stop() == 0
    assert site.store.fingerprint() == site.before
