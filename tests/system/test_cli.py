"""The commands on a running cluster, and the conversation in a real terminal, with the real model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pexpect
import pytest

from tests.support.cluster import Cluster, Process, cluster, wait_until

NAME = "smollm2:135m-instruct-q4_1"
Served = tuple[Cluster, Process]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``llmlb serve`` with a small context: a conversation has no token limit, and not every answer finds its end."""
    settings = {"LLMLB_CONTEXT_LENGTH": "256"}
    with cluster(tmp_path_factory.mktemp("cli"), **settings) as it:
        yield it, it.start("serve", home="one").wait_ready()


def node(served: Served, *command: str) -> subprocess.CompletedProcess[str]:
    it, process = served
    return it.cli("node", *command, host=f"127.0.0.1:{process.node_port}")


def router(served: Served, *command: str) -> subprocess.CompletedProcess[str]:
    it, process = served
    return it.cli("router", *command, host=f"127.0.0.1:{process.router_port}")


def rows(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.rstrip("\n").split("\n")


def test_list_shows_the_demo_model(served: Served) -> None:
    head, row = rows(node(served, "list"))
    assert head.split() == ["NAME", "SIZE", "MODIFIED"]
    assert re.fullmatch(rf"{NAME} +98 MB +(Just now|\d+ \w+ ago)", row)
    assert NAME in node(served, "ls").stdout
    (model,) = json.loads(node(served, "list", "--json").stdout)
    assert model["source"] == "Bundled"


def test_show_and_its_five_options(served: Served) -> None:
    assert rows(node(served, "show", "smollm2")) == [
        f"Model: {NAME}",
        "  Architecture: llama",
        "  Parameters: 134.52M",
        "  Quantization: Q4_1",
        "  Context Length: 8192",
        "  Format: GGUF",
        "  Size: 98 MB",
        "  License: apache-2.0",
        "  Aliases: smollm2",
    ]
    assert rows(node(served, "show", NAME, "--license")) == ["apache-2.0"]
    assert "<|im_start|>" in node(served, "show", NAME, "--template").stdout
    assert "llama.context_length" in node(served, "show", NAME, "--parameters").stdout
    assert node(served, "show", NAME, "--modelfile").stdout.startswith("FROM /")
    assert node(served, "show", NAME, "--system").returncode == 0


@pytest.mark.parametrize("command", ["show", "run", "stop"])
def test_an_unknown_model_is_exit_1_with_the_nearest_name(served: Served, command: str) -> None:
    done = node(served, command, "smollm")
    assert done.returncode == 1
    how = " To pull a model: llmlb node pull owner/model" if command == "run" else ""
    assert done.stderr.strip() == f"Error: model 'smollm' was not found; did you mean smollm2?{how}"


def test_a_bad_name_is_exit_1(served: Served) -> None:
    done = node(served, "show", "no such name!")
    assert done.returncode == 1
    assert "is not a model name" in done.stderr


def test_run_answers_once_with_a_prompt_and_from_a_pipe(served: Served) -> None:
    it, process = served
    done = node(served, "run", "smollm2", "What is the capital of Japan?", "--verbose")
    assert done.returncode == 0
    assert len(done.stdout) > 5
    assert re.search(r"eval rate: +\d+\.\d tokens/s", done.stderr)
    piped = subprocess.run(
        [sys.executable, "-m", "llmlb", "node", "run", "smollm2"],
        input="Say hello.",
        env=it.environ(it.root / "client", LLMLB_HOST=f"127.0.0.1:{process.node_port}"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert piped.returncode == 0
    assert piped.stdout.strip()
    assert ">>>" not in piped.stdout
    assert node(served, "run", "smollm2").returncode == 1, "an empty pipe is no prompt"


def test_ps_shows_what_is_loaded_and_stop_unloads_it(served: Served) -> None:
    node(served, "run", "smollm2", "hi")
    head, row = rows(node(served, "ps"))
    assert head.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "UNTIL", "VRAM", "TEMP"]
    assert re.fullmatch(rf"{NAME} +[0-9a-f]{{12}} +\d+ MB +100% CPU +4 minutes +- +-", row)
    done = node(served, "stop", "smollm2")
    assert (done.returncode, done.stdout) == (0, "")
    assert len(rows(node(served, "ps"))) == 1
    again = node(served, "stop", "smollm2")
    assert again.returncode == 1
    assert "is not loaded" in again.stderr


def test_router_commands_show_the_cluster(served: Served) -> None:
    head, row = rows(router(served, "nodes"))
    assert head.split() == ["ID", "HOST", "STATUS", "GPU", "MODELS"]
    assert re.fullmatch(rf"[0-9a-f]{{12}} +\S+:{served[1].node_port} +online +- +1", row)
    assert [line.split() for line in rows(router(served, "models"))] == [
        ["MODEL", "NODES", "STATUS"],
        [NAME, "1", "available"],
    ]
    httpx.post(
        f"{served[1].url}/v1/chat/completions",
        json={"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
        timeout=60,
    )

    def status() -> list[str]:
        return rows(router(served, "status"))

    wait_until(lambda: status()[4].split()[1] != "0", 5, "the request is counted")
    lines = status()
    assert lines[:4] == [
        "Cluster Status: healthy",
        "",
        "Nodes:      1 online / 0 offline",
        "Models:     1 available",
    ]
    assert re.fullmatch(r"Requests:   [\d,]+ \(last hour\)", lines[4])
    assert lines[5] == "VRAM:       -"


def test_a_router_command_at_a_nodes_gateway_is_explained(served: Served) -> None:
    it, process = served
    done = it.cli("router", "nodes", host=f"127.0.0.1:{process.node_port}")
    assert done.returncode == 1
    assert "is not a router's gateway" in done.stderr


@pytest.fixture
def terminal(served: Served) -> Iterator[pexpect.spawn[str]]:
    """``llmlb node run smollm2`` in a terminal of 100 columns."""
    it, process = served
    home = it.root / "terminal"
    child = pexpect.spawn(
        sys.executable,
        ["-m", "llmlb", "node", "run", "smollm2"],
        env={
            **it.environ(home, LLMLB_HOST=f"127.0.0.1:{process.node_port}"),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
        },
        dimensions=(24, 100),
        encoding="utf-8",
        timeout=30,
    )
    child.expect(">>> ")
    yield child
    if child.isalive():
        child.terminate(force=True)
    child.close()


def test_a_conversation_in_the_terminal(terminal: pexpect.spawn[str], served: Served) -> None:
    terminal.send("What is the capital of Japan?\r")
    terminal.expect("(?i)[a-z]{3,}.*\n")
    terminal.expect(">>> ")
    terminal.send("/clear\r")
    terminal.expect("Cleared the conversation")
    terminal.expect(">>> ")
    terminal.send("/?\r")
    terminal.expect("/bye")
    terminal.expect(">>> ")
    terminal.send("/nonsense\r")
    terminal.expect("Unknown command '/nonsense'")
    terminal.expect(">>> ")
    terminal.send('"""one\r')
    terminal.expect(r"\.\.\.")
    terminal.send('two"""\r')
    terminal.expect(">>> ", timeout=60)
    terminal.send("/bye\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_session_and_ctrl_d_leaves(
    terminal: pexpect.spawn[str], served: Served
) -> None:
    terminal.sendcontrol("c")
    terminal.expect("Use Ctrl \\+ d or /bye to exit.")
    terminal.expect(">>> ")
    terminal.send("Write a very long story about every animal there is, one after the other.\r")
    wait_until(lambda: running(served[1]) == 1, 15, "it is being answered")
    time.sleep(0.3)
    terminal.sendcontrol("c")
    terminal.expect(">>> ")
    wait_until(lambda: running(served[1]) == 0, 10, "the slot is free again")
    terminal.sendcontrol("d")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def running(process: Process) -> int:
    models = httpx.get(f"{process.node_url}/v0/ps").json()["models"]
    return sum(model["running"] for model in models)


def test_history_is_kept_in_the_home(terminal: pexpect.spawn[str], served: Served) -> None:
    terminal.send("/clear\r")
    terminal.expect("Cleared")
    terminal.expect(">>> ")
    terminal.sendcontrol("d")
    terminal.expect(pexpect.EOF)
    assert "/clear" in (served[0].root / "terminal" / "history").read_text()
    assert os.stat(served[0].root / "terminal" / "history").st_size > 0
