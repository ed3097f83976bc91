"""The command as a process of its own: help, exit codes, what is said when nobody answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import LlmlbError
from llmlb.cli.sse_client import SseReader
from tests.support.cluster import free_port

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


def run(*command: str, module: str = "llmlb", **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLMLB_", "XLLM_"))}
    return subprocess.run(
        [sys.executable, "-m", module, *command],
        env={**clean, "NO_COLOR": "1", "COLUMNS": "120", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage: llmlb" in done.stdout
    if command != "node ls":
        assert "Exit codes: 0 success, 1 error, 2 no connection" in done.stdout
        assert "Example: llmlb" in done.stdout


def test_help_and_version_need_neither_http_nor_bus() -> None:
    code = (
        "import sys; import llmlb.cli.main; "
        "heavy = {'httpx', 'pydantic', 'nats', 'faststream', 'sanic', 'llama_cpp', 'prompt_toolkit'};"
        "heavy &= set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]"
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


class _Answers(BaseHTTPRequestHandler):
    """Whatever a test puts here, for any request."""

    status = 200
    body = b""
    type = "application/json"

    def _answer(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", self.type)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[tuple[type[_Answers], str]]:
    handler = type("Handler", (_Answers,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b'{"error": {"message": "x was not found", "code": "model_not_found"}}', "Error: x was not found"),
        (200, b"<html>hello</html>", "is not a llmlb gateway"),
        (500, b"oops", "is not a llmlb gateway"),
        (200, b"[]", "is not a llmlb gateway"),
        (404, b'{"error": "not found"}', "is not a llmlb gateway"),
        (404, b'{"error": {"message": "m", "code": "not_found"}}', "does not know this command"),
    ],
)
def test_what_a_server_refuses_is_one_line(
    fake: tuple[type[_Answers], str], status: int, body: bytes, says: str
) -> None:
    handler, address = fake
    handler.status, handler.body = status, body
    done = run("node", "show", "x", LLMLB_HOST=address)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().split("\n")) == 1


def test_a_bus_that_is_away_is_a_connection_error(fake: tuple[type[_Answers], str]) -> None:
    handler, address = fake
    handler.status = 503
    handler.body = b'{"error": {"message": "the bus is not reachable", "code": "bus_unavailable"}}'
    assert run("node", "list", LLMLB_HOST=address).returncode == 2


def stream(*events: object, done: bool = True) -> bytes:
    blocks = [b"data: " + json.dumps(event).encode() for event in events] + ([b"data: [DONE]"] if done else [])
    return b"\n\n".join(blocks) + b"\n\n"


def text(piece: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": piece}}]}


@given(st.lists(st.text(max_size=10), max_size=5), st.lists(st.integers(0, 400), max_size=10))
def test_events_are_read_whatever_the_pieces(texts: list[str], cuts: list[int]) -> None:
    texts = [piece.encode("utf-8", "ignore").decode() for piece in texts]
    data = b": a comment\n\n" + stream(*(text(piece) for piece in texts))
    at = sorted({min(cut, len(data)) for cut in cuts})
    reader = SseReader()
    got = [e for a, b in zip([0, *at], [*at, len(data)], strict=True) for e in reader.feed(data[a:b])]
    assert got == [*(text(piece) for piece in texts), None]


def test_an_event_that_is_not_json_is_an_error() -> None:
    with pytest.raises(LlmlbError, match="not JSON"):
        list(SseReader().feed(b"data: {oops\n\n"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (stream(text("Hel"), done=False), "the answer ended early"),
        (stream(text("Hel"), {"error": {"message": "it crashed", "code": "engine_crashed"}}, done=False), "it crashed"),
    ],
)
def test_an_answer_that_does_not_end_is_an_error_and_never_a_success(
    fake: tuple[type[_Answers], str], body: bytes, says: str
) -> None:
    handler, address = fake
    handler.body = body
    # The check that the model exists gets the same bytes; make it an object first.
    handler.do_GET = lambda self: _ok(self)  # type: ignore[assignment]
    done = run("node", "run", "m", "hello", LLMLB_HOST=address)
    assert done.returncode == 1
    assert done.stdout.startswith("Hel")
    assert says in done.stderr


def _ok(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "2")
    handler.end_headers()
    handler.wfile.write(b"{}")


def test_thinking_is_hidden_unless_asked_for(fake: tuple[type[_Answers], str]) -> None:
    handler, address = fake
    handler.body = stream({"choices": [{"delta": {"reasoning_content": "hmm"}}]}, text("42"))
    handler.do_GET = lambda self: _ok(self)  # type: ignore[assignment]
    assert run("node", "run", "m", "q", LLMLB_HOST=address).stdout == "42\n"
    shown = run("node", "run", "m", "q", "--think", LLMLB_HOST=address).stdout
    assert shown == "Thinking...\nhmm\n...done thinking.\n\n42\n"


def test_the_home_is_not_touched_by_a_client_command(tmp_path: Path) -> None:
    run("node", "list", LLMLB_HOME=str(tmp_path / "home"), LLMLB_HOST=f"127.0.0.1:{free_port()}")
    assert not (tmp_path / "home").exists()
