"""The command as a process of its own: help, exit codes, what is said when nobody answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import free_port
from tests.unit.cli.fake_gateway import DETAILS, MODEL, Gateway, environ, run

HEAVY = "{'httpx', 'pydantic', 'nats', 'faststream', 'sanic', 'llama_cpp', 'prompt_toolkit', 'rich', 'http.client'}"


def heavy_imports(command: list[str], host: str = "127.0.0.1:1") -> set[str]:
    """What a command, as a process of its own, imports of what takes long."""
    code = (
        "import os, sys, llmlb.cli.main as main\nos._exit = sys.exit\n"
        f"sys.argv = ['llmlb', *{command}]\n"
        "try: main.main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print(*sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ(LLMLB_HOST=host), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["node", "--help"], ["router", "nodes", "--help"]])
def test_help_and_version_need_neither_http_nor_bus(command: list[str]) -> None:
    assert heavy_imports(command) == set()


@pytest.mark.parametrize(
    ("command", "path", "answer"),
    [
        ("node list", "/v0/models", {"models": [MODEL]}),
        ("node ps", "/v0/ps", {"models": []}),
        ("node show owner/a", "/v0/models/owner/a", DETAILS),
        ("node stop owner/a", "/v0/models/stop", {"model": "owner/a"}),
        ("node rm owner/a", "/v0/models/owner/a", {"model": "owner/a", "freed_bytes": 1}),
        ("router nodes", "/v0/nodes", {"nodes": []}),
    ],
)
def test_a_command_that_asks_and_prints_imports_only_the_http_of_the_standard_library(
    fake: tuple[type[Gateway], str], command: str, path: str, answer: object
) -> None:
    handler, address = fake
    handler.scripts = {f"{method} {path}": [answer] for method in ("GET", "POST", "DELETE")}
    assert heavy_imports(command.split(), address) == {"http.client"}


def test_version_is_printed() -> None:
    assert run("--version").stdout.startswith("llmlb 0.")


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("node list", "llmlb node serve"),
        ("node ps", "llmlb node serve"),
        ("node show x", "llmlb node serve"),
        ("node pull x", "llmlb node serve"),
        ("node pull --cancel x", "llmlb node serve"),
        ("node rm x y", "llmlb node serve"),
        ("node stop x", "llmlb node serve"),
        ("node run x", "llmlb node serve"),
        ("router nodes", "llmlb router serve"),
        ("router models", "llmlb router serve"),
        ("router status", "llmlb router serve"),
        ("router approve x", "llmlb router serve"),
    ],
)
def test_a_server_that_is_down_is_one_line_and_exit_2(command: str, start: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = run(*command.split(), LLMLB_HOST=address)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip().split("\n") == [
        f"Error: cannot reach llmlb at {address}: connection refused. Start it with: {start}, "
        "or mend LLMLB_HOST, which names this address"
    ]


def test_a_host_that_does_not_exist_is_exit_2_and_no_password_is_shown() -> None:
    done = run("node", "ps", LLMLB_HOST="http://me:hunter2@no-such-host.invalid:1")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: cannot reach llmlb at no-such-host.invalid:1: ")
    assert "Errno" not in done.stderr
    assert len(done.stderr.strip().split("\n")) == 1


@pytest.mark.parametrize(
    ("command", "env", "says"),
    [
        (["node", "frobnicate"], {}, "No such command"),
        (["node", "show"], {}, "Missing argument"),
        (["node", "list", "--nope"], {}, "No such option: --nope. See: llmlb node list --help"),
        (["node", "serve", "--port", "abc"], {}, "Invalid value for '--port': not a whole number. See: "),
        (["node", "pull", " "], {}, "there is no name of a model"),
        (["node", "list"], {"LLMLB_HOST": "ftp://x"}, "LLMLB_HOST='ftp://x' is wrong"),
        (["node", "serve"], {"XLLM_PORT": "hello"}, "XLLM_PORT='hello' is wrong"),
        (["node", "serve"], {"LLMLB_BUS_URL": "x"}, "LLMLB_BUS_URL='x' is wrong"),
        (["node", "show", "m", "--license", "--system"], {}, "give one of"),
    ],
)
def test_a_wrong_call_is_exit_1_without_a_traceback(command: list[str], env: dict[str, str], says: str) -> None:
    done = run(*command, **env)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_llm_router_is_the_router_group() -> None:
    code = (
        "import sys; from llmlb.cli.main import router_main;"
        "sys.argv = ['llm-router', 'status', '--help']; router_main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert "Usage: llm-router status" in done.stdout


def test_config_show_prints_every_variable_and_no_secret() -> None:
    done = run("config", "show", LLMLB_BUS_URL="nats://me:hunter2@10.0.0.1")
    assert done.returncode == 0
    assert "LLMLB_BUS_URL" in done.stdout
    assert "hunter2" not in done.stdout


@pytest.mark.parametrize(
    ("pipe", "code"),
    [
        ("{llmlb} config show | head -n 1; exit ${PIPESTATUS[0]}", 0),
        ("{llmlb} config show | true; exit ${PIPESTATUS[0]}", 0),
        ("{llmlb} --help | head -n 0; exit ${PIPESTATUS[0]}", 0),
        ("{llmlb} config show >&-", 0),
    ],
)
def test_a_reader_that_goes_away_is_no_error(pipe: str, code: int) -> None:
    shell = pipe.replace("{llmlb}", f"{sys.executable} -m llmlb")
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_full_disk_under_the_output_is_one_line() -> None:
    shell = f"{sys.executable} -m llmlb config show > /dev/full"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, "Error: cannot write the output: No space left on device\n")


def test_a_traceback_is_shown_with_debug_only() -> None:
    done = run("node", "list", LLMLB_HOST=f"127.0.0.1:{free_port()}", LLMLB_DEBUG="true")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("Error: cannot reach llmlb")


@pytest.mark.parametrize("command", [[], ["node"], ["router", "user"]])
def test_a_group_without_a_command_shows_its_help(command: list[str]) -> None:
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Commands:" in done.stdout


def test_an_unknown_command_names_the_nearest() -> None:
    done = run("nod", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: No such command 'nod'. Did you mean 'node'? See: llmlb --help\n"


def test_config_show_as_json_has_stable_keys() -> None:
    rows = json.loads(run("config", "show", "--json", LLMLB_API_KEY="sk_secretsecret").stdout)
    assert all(set(row) == {"variable", "value", "meaning"} for row in rows)
    assert {row["variable"]: row["value"] for row in rows}["LLMLB_API_KEY"] == "****"


def test_the_home_is_not_touched_by_a_client_command(tmp_path: Path) -> None:
    run("node", "list", LLMLB_HOME=str(tmp_path / "home"), LLMLB_HOST=f"127.0.0.1:{free_port()}")
    assert not (tmp_path / "home").exists()
