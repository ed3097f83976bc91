"""The command as a process, and a stand-in for the gateway it talks to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any

MODEL = {
    "name": "owner/a",
    "aliases": [],
    "format": "GGUF",
    "size_bytes": 6_400_000_000,
    "architecture": "llama",
    "quantization": None,
    "parameters": None,
    "context_length": None,
    "source": "Local",
    "readonly": False,
    "created_at": 0.0,
}
DETAILS = {
    "model": MODEL,
    "path": "/models/a.gguf",
    "license": None,
    "template": "{{ messages }}",
    "template_source": "model",
    "system": None,
    "parameters": {"llama.block_count": "30", "general.name": "A"},
}


def run(*command: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLMLB_", "XLLM_"))}
    return subprocess.run(
        [sys.executable, "-m", "llmlb", *command],
        env={**clean, "NO_COLOR": "1", "COLUMNS": "120", **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
    )


def stream(*events: object, finish: bool = True, done: bool = True) -> bytes:
    """The bytes of an answer: the events, then how a gateway ends one."""
    last: list[object] = [{"choices": [{"delta": {}, "finish_reason": "stop"}]}] if finish else []
    blocks = [b"data: " + json.dumps(event).encode() for event in [*events, *last]] + (
        [b"data: [DONE]"] if done else []
    )
    return b"\n\n".join(blocks) + b"\n\n"


def text(piece: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": piece}}]}


class Gateway(BaseHTTPRequestHandler):
    """Answers GET with what ``bodies`` has for the path, else ``body``; POST with ``posted``, or the same.

    ``asked`` collects method, path and body. A class per test, made by the fixture.
    """

    status = 200
    body: bytes = json.dumps(DETAILS).encode()
    posted: bytes | None = None
    posted_type = "text/event-stream"
    bodies: dict[str, object] = {}
    asked: list[tuple[str, str, Any]] = []

    def do_GET(self) -> None:
        self.asked.append(("GET", self.path, None))
        found = self.bodies.get(self.path)
        self._send(self.body if found is None else json.dumps(found).encode(), "application/json")

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(("POST", self.path, sent))
        if self.posted is None:
            self._send(self.body, "application/json")
        else:
            self._send(self.posted, self.posted_type)

    def _send(self, body: bytes, type: str) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
