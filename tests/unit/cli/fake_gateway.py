"""The command as a process, and a stand-in for the gateway it talks to."""

from __future__ import annotations

import json
import os
import subprocess
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support import forks

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


def environ(**env: str) -> dict[str, str]:
    """The environment of a command: none of the outer settings."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLMLB_", "XLLM_", "HF_"))}
    return {**clean, "NO_COLOR": "1", "COLUMNS": "120", **env}


def run(*command: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return forks.run("llmlb", *command, env=environ(**env), stdin=stdin, timeout_s=30)


def stream(*events: object, finish: bool = True, done: bool = True) -> bytes:
    """The bytes of an answer: the events, then how a gateway ends one."""
    last: list[object] = [{"choices": [{"delta": {}, "finish_reason": "stop"}]}] if finish else []
    blocks = [b"data: " + json.dumps(event).encode() for event in [*events, *last]] + (
        [b"data: [DONE]"] if done else []
    )
    return b"\n\n".join(blocks) + b"\n\n"


def text(piece: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": piece}}]}


def task(**fields: Any) -> dict[str, Any]:
    """The state of a pull, as a node tells it."""
    return {
        "task_id": "0123456789abcdef",
        "node_id": "n",
        "model": "owner/a",
        "origin": "user",
        "status": "downloading",
        "phase": "downloading",
        "files": [],
        "total_bytes": 0,
        "downloaded_bytes": 0,
        "speed_bps": 0,
        "eta_s": None,
        "note": None,
        "name": None,
        "alias": None,
        "error": None,
        "started_at": 0.0,
        **fields,
    }


def file(done: int, total: int, digest: str | None = "abc123def456" + "0" * 52, name: str = "a.gguf") -> dict[str, Any]:
    return {"name": name, "digest": digest, "total_bytes": total, "done_bytes": done, "verified_bytes": 0}


def downloading(*files: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A task with these files, and sums that fit."""
    total, done = (sum(each[key] for each in files) for key in ("total_bytes", "done_bytes"))
    return task(files=list(files), total_bytes=total, downloaded_bytes=done, **fields)


GB = 10**9
TASK_PATH = "/v0/tasks/0123456789abcdef"
COMPLETED = downloading(file(6_400_000_000, 6_400_000_000), status="completed", phase="done", name="owner/a", alias="a")


class Gateway(BaseHTTPRequestHandler):
    """Answers GET with what ``bodies`` has for the path, else ``body``; POST with ``posted``, or the same.

    ``scripts`` goes before all that: by method and path the answers in their order, the last one again and again. An
    answer is an object, a status and an object, or None: the connection is cut. ``asked`` collects method, path and
    body. A class per test, made by the fixture.
    """

    status = 200
    llmlb_version: str | None = None
    body: bytes = json.dumps(DETAILS).encode()
    posted: bytes | None = None
    posted_type = "text/event-stream"
    bodies: dict[str, object] = {}
    scripts: dict[str, list[object]] = {}
    asked: list[tuple[str, str, Any]] = []

    def do_GET(self) -> None:
        self.asked.append(("GET", self.path, None))
        if self._scripted():
            return
        found = self.bodies.get(self.path)
        self._send(self.body if found is None else json.dumps(found).encode(), "application/json")

    def do_DELETE(self) -> None:
        self.asked.append(("DELETE", self.path, None))
        if not self._scripted():
            self._send(self.body, "application/json")

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(("POST", self.path, sent))
        if self._scripted():
            return
        if self.posted is None:
            self._send(self.body, "application/json")
        else:
            self._send(self.posted, self.posted_type)

    def _scripted(self) -> bool:
        script = self.scripts.get(f"{self.command} {self.path}")
        if script is None:
            return False
        answer = script.pop(0) if len(script) > 1 else script[0]
        if answer is None:
            self.close_connection = True
            return True
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        self._send(json.dumps(body).encode(), "application/json", status)
        return True

    def _send(self, body: bytes, type: str, status: int | None = None) -> None:
        self.send_response(status or self.status)
        self.send_header("Content-Type", type)
        if self.llmlb_version is not None:
            self.send_header("X-Llmlb-Version", self.llmlb_version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
