"""The command as a process of its own: help, exit codes, what is said when nobody answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import free_port
from tests.unit.cli.fake_gateway import run

COMMANDS = [
    "serve",
    "node serve",
    "node run",
    "node list",
    "node ls",
    "node show",
    "node stop",
    "node ps",
    "router serve",
    "router nodes",
    "router models",
    "router status",
    "router approve",
    "config show",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage: llmlb" in done.stdout
    assert "Exit codes: 0 success, 1 error, 2 no connection" in done.stdout
    assert "Example: llmlb" in done.stdout


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (["--help"], []),
        (["--version"], []),
        # typer/_adapters.py imports pydantic for itself, for the arguments of sub-commands.
        (["node", "--help"], ["pydantic"]),
        (["router", "nodes", "--help"], ["pydantic"]),
    ],
)
def test_help_and_version_need_neither_http_nor_bus(command: list[str], allowed: list[str]) -> None:
    code = (
        "import sys, llmlb.cli.main as main\n"
        f"sys.argv = ['llmlb', *{command}]\n"
        "try: main.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'httpx', 'pydantic', 'nats', 'faststream', 'sanic', 'llama_cpp', 'prompt_toolkit'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert set(done.stderr.split()) <= set(allowed)


def test_version_is_printed() -> None:
    assert run("--version").stdout.startswith("llmlb 0.")


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("node list", "llmlb node serve"),
        ("node ps", "llmlb node serve"),
        ("node show x", "llmlb node serve"),
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
        f"Error: cannot reach llmlb at {address}: connection refused. Start it with: {start}"
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
        (["node", "list", "--nope"], {}, "No such option"),
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
    assert "Traceback" not in done.stderr


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


def test_a_reader_that_goes_away_is_no_error() -> None:
    shell = f"{sys.executable} -m llmlb config show | head -n 1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""


def test_the_home_is_not_touched_by_a_client_command(tmp_path: Path) -> None:
    run("node", "list", LLMLB_HOME=str(tmp_path / "home"), LLMLB_HOST=f"127.0.0.1:{free_port()}")
    assert not (tmp_path / "home").exists()
