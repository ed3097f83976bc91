"""How an answer looks in a real terminal, piece by piece: the gateway is scripted, so that each moment can be seen."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.support.tmux import IDLE, LEFT, pane
from tests.unit.cli.fake_gateway import DETAILS, environ

ENDS: tuple[bytes, ...] = (
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n',
    b"data: [DONE]\n\n",
)


class Scripted:
    """Answers with the pieces that a test puts into ``pieces``; None ends the answer."""

    def __init__(self) -> None:
        self.pieces: Queue[bytes | None] = Queue(100)
        self.loading = {"name": "owner/a", "state": "loading", "percent": 45, "context_length": 0}
        self.bodies: list[Any] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._json({"models": [scripted.loading]} if self.path == "/v0/ps" else DETAILS)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    return self._json({"input_tokens": 1})
                scripted.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                while (piece := scripted.pieces.get(timeout=60)) is not None:
                    self.wfile.write(piece)
                    self.wfile.flush()

            def _json(self, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def say(self, text: str, field: str = "content") -> None:
        self.pieces.put(b"data: " + json.dumps({"choices": [{"delta": {field: text}}]}).encode() + b"\n\n")

    def comment(self, text: str) -> None:
        self.pieces.put(b": " + text.encode() + b"\n\n")

    def end(self) -> None:
        for piece in (*ENDS, None):
            self.pieces.put(piece)


@pytest.fixture
def gateway() -> Iterator[Scripted]:
    made = Scripted()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.pieces.put(None)
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def command(gateway: Scripted, home: Path, *options: str, **env: str) -> tuple[list[str], dict[str, str]]:
    host = f"127.0.0.1:{gateway.server.server_port}"
    settings = {"LLMLB_HOST": host, "LLMLB_HOME": str(home), "NO_COLOR": "", **env}
    return [sys.executable, "-m", "llmlb", "node", "run", "owner/a", *options], environ(**settings)


MARKDOWN = (
    "## Title\n\nSome **bold** words and `code` here.\n\n- an item that is rather long for it\n\n```sh\nls *\n```\n"
)


def test_markdown_is_drawn_as_it_streams_in_a_narrow_terminal(gateway: Scripted, tmp_path: Path) -> None:
    with pane(*command(gateway, tmp_path), columns=24) as it:
        it.wait(r">>> Send a")
        it.line("q")
        gateway.say("## Ti")
        it.wait(r">>> q\nTi$")
        gateway.say("tle\n\nSome **bold** words and `co")
        it.wait(r">>> q\nTitle\n\nSome bold words and$")
        gateway.say(
            "de` here.\n\n- an item that is rather long for it\n\n```sh\nls *\n```\n日本語のテキスト、とても長い。"
        )
        gateway.end()
        it.wait(
            r">>> q\nTitle\n\nSome bold words and\ncode here\.\n\n"
            r"• an item that is\n  rather long for it\n\n```sh\nls \*\n```\n"
            r"日本語のテキスト、とて\nも長い。\n\n>>> Send"
        )
        styled = it.screen(styles=True)
        assert "\x1b[1mTitle" in styled
        assert "\x1b[1mbold" in styled
        it.resize(60, 24)
        it.line("/bye")
        it.wait(LEFT)


def test_no_color_means_no_escape_sequences_and_no_spinner(gateway: Scripted, tmp_path: Path) -> None:
    with pane(*command(gateway, tmp_path, NO_COLOR="1")) as it:
        it.wait(IDLE)
        it.line("q")
        it.wait(r">>> q$")
        gateway.say(MARKDOWN)
        gateway.end()
        it.wait(r">>> q\n## Title\n\nSome \*\*bold\*\* words and `code` here\..*" + IDLE)
        assert "\x1b" not in it.screen(styles=True)


def test_a_model_cannot_command_the_terminal(gateway: Scripted, tmp_path: Path) -> None:
    with pane(*command(gateway, tmp_path)) as it:
        it.wait(IDLE)
        it.line("q")
        gateway.say("a\x1b[2J\x1b]0;owned\x07b")
        gateway.end()
        it.wait(r">>> q\na\ufffd\[2J\ufffd\]0;owned\ufffdb\n\n" + IDLE)


def test_the_spinner_says_what_is_waited_for_and_leaves_nothing(gateway: Scripted, tmp_path: Path) -> None:
    with pane(*command(gateway, tmp_path)) as it:
        it.wait(IDLE)
        it.line("q")
        gateway.comment("loading")
        it.wait(r">>> q\n\S Loading the model\.\.\. 45%$")
        gateway.comment("queued x-llmlb-queue-position=2 of 7 x-llmlb-queue-wait-s=3.0")
        it.wait(r">>> q\n\S Waiting, 2 of 7$")
        gateway.comment("prefill")
        it.wait(r">>> q\n\S Reading the prompt\.\.\.$")
        gateway.say("hmm", "reasoning_content")
        it.wait(r">>> q\n\S Thinking\.\.\.$")
        gateway.say("The answer.")
        it.wait(r">>> q\nThe answer\.$")
        gateway.end()
        it.wait(r">>> q\nThe answer\.\n\n" + IDLE)


def test_ctrl_c_behind_the_spinner_leaves_nothing(gateway: Scripted, tmp_path: Path) -> None:
    with pane(*command(gateway, tmp_path)) as it:
        it.wait(IDLE)
        it.line("q")
        it.wait(r">>> q\n\S$")
        it.keys("C-c")
        it.wait(r">>> q\n\n" + IDLE)
        it.line("/bye")
        it.wait(LEFT)


def test_thinking_is_shown_between_its_two_lines(gateway: Scripted, tmp_path: Path) -> None:
    with pane(*command(gateway, tmp_path, "--think")) as it:
        it.wait(IDLE)
        it.line("q")
        gateway.say("\nFirst this.\n", "reasoning_content")
        it.wait(r">>> q\nThinking\.\.\.\nFirst this\.$")
        gateway.say("Then that.\n\n", "reasoning_content")
        gateway.say("\n\nIt is **so**.")
        gateway.end()
        it.wait(r">>> q\nThinking\.\.\.\nFirst this\.\nThen that\.\n\.\.\.done thinking\.\n\nIt is so\.\n\n" + IDLE)
        assert "\x1b[2mThinking...\nFirst this.\nThen that.\n...done thinking." in it.screen(styles=True)
        it.line("again")
        gateway.end()
        it.wait(r">>> again\n\n" + IDLE)
    assert gateway.bodies[-1]["think"] is True
    assert [turn["content"] for turn in gateway.bodies[-1]["messages"]] == ["q", "\n\nIt is **so**.", "again"]
