"""What an engine worker can do to its node: die, hang, be unloadable, take too much memory. Real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.node.store.bundled import bundled_path
from tests.support.cluster import Cluster, Process, alive, children, cluster, wait_until

MODEL = "smollm2"
ENDLESS = [{"role": "user", "content": "What is the capital of France?"}]
SIMPLE = [{"role": "user", "content": "What is the capital of Japan?"}]


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": SIMPLE, "temperature": 0, "max_tokens": 12, **more}


def ask(process: Process, **more: Any) -> httpx.Response:
    return httpx.post(f"{process.node_url}/v1/chat/completions", json=body(**more), timeout=60)


def workers(process: Process) -> list[int]:
    """Pids of the engine workers."""
    found = []
    for pid in children(process.popen.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"llmlb.node.engine.worker" in command:
            found.append(pid)
    return found


def running_models(process: Process) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = httpx.get(f"{process.node_url}/v0/ps").json()["models"]
    return models


def stream_until_broken(process: Process, break_it: Any) -> list[dict[str, Any]]:
    """Events of a long answer; ``break_it`` is called after the fifth."""
    events: list[dict[str, Any]] = []
    long = body(messages=ENDLESS, max_tokens=900, stream=True)
    url = f"{process.node_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=long, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                assert line != "data: [DONE]", "a broken answer must not look whole"
                events.append(json.loads(line[6:]))
                if len(events) == 5:
                    break_it()
    return events


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Process]]:
    """A node whose store has, besides the demo model, a truncated and a corrupt one and a second good one."""
    with cluster(tmp_path_factory.mktemp("workers"), LLMLB_STALL_TIMEOUT="3s") as it:
        source = bundled_path()
        assert source is not None
        data = source.read_bytes()
        store = it.root / "one" / "models" / "test"
        for name, content in (
            ("truncated", data[: len(data) // 2]),
            ("corrupt", data[:24] + bytes(64) + data[88:]),
        ):
            (store / name).mkdir(parents=True)
            (store / name / "model.Q4_1.gguf").write_bytes(content)
        (store / "second").mkdir()
        shutil.copy(source, store / "second" / "model.Q4_1.gguf")
        yield it, it.start("serve", home="one").wait_ready()


def test_one_load_is_shared_by_all_who_wait_for_it(rig: tuple[Cluster, Process]) -> None:
    process = rig[1]
    wait_until(lambda: httpx.get(f"{process.node_url}/v1/models").json()["data"], 10, "the models are known")
    before = process.output().count("model_loading")
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: ask(process), range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert process.output().count("model_loading") == before + 1
    assert len(workers(process)) == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_in_mid_answer_ends_it_with_one_error_and_comes_back(
    rig: tuple[Cluster, Process], how: signal.Signals
) -> None:
    process = rig[1]
    assert ask(process).status_code == 200
    (pid,) = workers(process)
    events = stream_until_broken(process, lambda: os.kill(pid, how))
    assert [event["error"]["code"] for event in events if "error" in event] == ["engine_crashed"]
    assert "error" in events[-1]
    wait_until(lambda: any(row["state"] == "ready" for row in running_models(process)), 15, "it restarts by itself")
    assert workers(process) != [pid]
    assert "Tokyo" in ask(process).json()["choices"][0]["message"]["content"]


def test_a_worker_that_hangs_is_ended_and_the_next_request_works(rig: tuple[Cluster, Process]) -> None:
    process = rig[1]
    assert ask(process).status_code == 200
    (pid,) = workers(process)
    began = time.monotonic()
    events = stream_until_broken(process, lambda: os.kill(pid, signal.SIGSTOP))
    assert [event["error"]["code"] for event in events if "error" in event] == ["engine_stalled"]
    wait_until(lambda: not alive(pid), 10, "the hung worker is ended")
    assert time.monotonic() - began < 20
    assert ask(process).status_code == 200


def test_a_truncated_or_corrupt_file_is_an_error_at_load_and_no_crash_loop(rig: tuple[Cluster, Process]) -> None:
    process = rig[1]
    listed = [model["id"] for model in httpx.get(f"{process.node_url}/v1/models").json()["data"]]
    assert "test/second" in listed
    assert "test/corrupt" not in listed, "its header can't be read"
    before = process.output().count("model_loading model=test/truncated")
    answer = ask(process, model="test/truncated")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "model_load_failed"
    assert "test/truncated" in answer.json()["error"]["message"]
    time.sleep(2)  # nothing happens by itself: there is no event to wait for
    assert process.output().count("model_loading model=test/truncated") == before + 1
    assert ask(process).status_code == 200, "the others go on"


def test_three_crashes_in_a_row_mark_the_model_failed_until_it_is_stopped(rig: tuple[Cluster, Process]) -> None:
    it, process = rig
    assert ask(process).status_code == 200
    for _ in range(3):
        wait_until(lambda: any(row["state"] == "ready" for row in running_models(process)), 15, "loaded")
        (pid,) = workers(process)
        stream_until_broken(process, lambda pid=pid: os.kill(pid, signal.SIGKILL))
    refused = ask(process)
    assert refused.status_code == 500
    assert "3 times in a row" in refused.json()["error"]["message"]
    (row,) = [row for row in running_models(process) if row["state"] == "failed"]
    assert "SIGKILL" in row["problem"]
    shown = it.cli("node", "show", MODEL, host=f"127.0.0.1:{process.node_port}")
    assert "SIGKILL" in shown.stdout
    listed = it.cli("node", "ps", host=f"127.0.0.1:{process.node_port}")
    assert "failed" in listed.stdout
    assert "model_failed" in process.output()
    stopped = it.cli("node", "stop", MODEL, host=f"127.0.0.1:{process.node_port}")
    assert stopped.returncode == 0
    assert ask(process).status_code == 200


def test_memory_decides_what_is_loaded(tmp_path: Path) -> None:
    """With room for one model, the idle one makes way, a busy one does not; one that can't fit is refused."""
    with cluster(tmp_path, LLMLB_MEMORY_LIMIT="560MiB", LLMLB_CONTEXT_LENGTH="1024", LLMLB_NUM_PARALLEL="2") as it:
        source = bundled_path()
        assert source is not None
        store = it.root / "one" / "models" / "test" / "second"
        store.mkdir(parents=True)
        shutil.copy(source, store / "model.Q4_1.gguf")
        process = it.start("serve", home="one").wait_ready()
        assert ask(process).status_code == 200
        assert ask(process, model="test/second").status_code == 200
        assert [row["name"] for row in running_models(process)] == ["test/second"], "the idle one made way"
        assert "model_evicted model=smollm2" in process.output()
        refusals: list[httpx.Response] = []
        events = stream_until_broken_with(process, "test/second", lambda: refusals.append(ask(process)))
        assert not any("error" in event for event in events), "a busy model is never evicted"
        assert refusals[0].status_code == 503
        error = refusals[0].json()["error"]
        assert error["code"] == "out_of_memory"
        assert "needs" in error["message"]
        assert "bytes) are free" in error["message"]


def stream_until_broken_with(process: Process, model: str, then: Any) -> list[dict[str, Any]]:
    """Events of an answer of this model that comes to its end; ``then`` is called after the fifth."""
    events: list[dict[str, Any]] = []
    long = body(model=model, messages=ENDLESS, max_tokens=150, stream=True)
    url = f"{process.node_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=long, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line[6:]))
                if len(events) == 5:
                    then()
    return events
