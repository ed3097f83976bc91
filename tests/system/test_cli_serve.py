"""How serving begins and ends: the start-up block, logs as JSON, refusals, draining, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster, Process, alive, children, cluster, wait_until


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made


def family(pid: int) -> list[int]:
    """Every process below this one."""
    below = children(pid)
    return below + [each for child in below for each in family(child)]


class Asking:
    """A client that has an answer on its way, with no end in sight."""

    def __init__(self, process: Process) -> None:
        ask = {"model": "smollm2", "stream": True, "messages": [{"role": "user", "content": "Tell a long story."}]}
        self._client = httpx.Client(timeout=60)
        request = self._client.build_request(
            "POST", f"{process.url}/v1/chat/completions", json={**ask, "max_tokens": 100_000}
        )
        self._lines = self._client.send(request, stream=True).iter_lines()
        assert any('"content":' in line for line in self._lines), "no answer came"

    def rest(self) -> str:
        """What comes until the end, whatever the end is."""
        lines = []
        with contextlib.suppress(httpx.TransportError):
            lines += self._lines
        self._client.close()
        return "\n".join(lines)


@pytest.mark.parametrize("command", [("node", "serve"), ("router", "serve")])
def test_a_port_that_is_taken_is_exit_1_with_the_reason(it: Cluster, command: tuple[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = it.cli(*command, "--port", str(port), "--host", "127.0.0.1")
    assert done.returncode == 1
    error = done.stderr.strip().split("\n")[-1]
    assert error.startswith("Error: ")
    assert str(port) in error
    assert "is taken" in error
    assert "Traceback" not in done.stderr + done.stdout


def test_a_home_that_cannot_be_written_is_exit_1_with_the_reason(it: Cluster) -> None:
    (it.root / "file").write_text("")
    process = it.start("serve", home="unused", LLMLB_HOME=str(it.root / "file" / "home"))
    assert process.popen.wait(30) == 1
    assert f"Error: the home directory {it.root / 'file' / 'home'} can't be written: " in process.output()
    assert "LLMLB_HOME" in process.output()
    assert "Traceback" not in process.output()


def test_logs_are_json_to_the_last_line_and_a_running_answer_may_end(it: Cluster) -> None:
    it.settings["LLMLB_CONTEXT_LENGTH"] = "256"  # the answer ends when the context is full
    process = it.start("serve", "--log-format", "json", home="one").wait_ready()
    wait_until(lambda: '"event": "begun"' in process.output(), 15, "it has begun")
    client = Asking(process)
    process.popen.send_signal(signal.SIGTERM)
    rest = client.rest()
    assert "data: [DONE]" in rest
    assert '"error"' not in rest
    assert process.popen.wait(30) == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in process.output().splitlines()]
    assert all({"time", "level", "logger"} <= set(line) for line in lines)
    events = {line["event"]: line for line in lines if "event" in line}
    assert events["begun"]["addresses"].startswith(f"router=http://127.0.0.1:{process.router_port},node=http://")
    assert events["begun"]["models"] == "smollm2:135m-instruct-q4_1"
    assert events["ending"]["drain_s"] == 20.0
    assert {"model_loaded", "node_draining", "stopped"} <= set(events)
    assert events["model_loaded"]["slots"] == 2, "numbers stay numbers"


def test_the_start_up_block_and_a_second_signal_that_ends_everything_at_once(it: Cluster) -> None:
    process = it.start("serve", home="one").wait_ready()
    wait_until(lambda: "Ctrl+C ends it." in process.output(), 15, "the start-up block")
    block = process.output().partition("is ready\n")[2]
    for line in (
        f"  bus     {it.bus_url} (started here)",
        f"  router  http://127.0.0.1:{process.router_port}/v1",
        f"  node    http://127.0.0.1:{process.node_port}/v1   id ",
        "  GPU     ",
        "  models  smollm2:135m-instruct-q4_1",
    ):
        assert line in block
    client = Asking(process)
    below = family(process.popen.pid)
    assert len(below) >= 2, "the bus and an engine worker"
    process.popen.send_signal(signal.SIGINT)
    wait_until(lambda: "Ctrl+C again ends at once." in process.output(), 10, "it says what it waits for")
    wait_until(lambda: "node_draining running=1" in process.output(), 10, "and how many requests there are")
    assert process.popen.poll() is None
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(5) == 130
    client.rest()
    wait_until(lambda: not any(alive(pid) for pid in below), 10, "worker and bus are gone")


def test_kill_9_leaves_no_worker_and_no_bus(it: Cluster) -> None:
    process = it.start("serve", home="one").wait_ready()
    client = Asking(process)
    below = family(process.popen.pid)
    commands = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below)
    assert b"nats-server" in commands
    assert b"llmlb.node.engine.worker" in commands
    os.kill(process.popen.pid, signal.SIGKILL)
    process.popen.wait(10)
    client.rest()
    wait_until(lambda: not any(alive(pid) for pid in below), 15, "worker and bus are gone")
