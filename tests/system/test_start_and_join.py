"""Starting, joining, dying, coming back, ending: real processes of one machine."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cluster import Process, alive, children, cluster, wait_until
from tests.support.natsd import NatsServer

QUESTION = [{"role": "user", "content": "Tell me about the sea."}]


def ask(process: Process, max_tokens: int = 8, **more: Any) -> httpx.Response:
    body = {"model": "smollm2", "messages": QUESTION, "max_tokens": max_tokens, **more}
    return httpx.post(f"{process.url}/v1/chat/completions", json=body, timeout=60)


def nodes(router: Process) -> dict[str, dict[str, Any]]:
    """By the port of the node's gateway."""
    found = httpx.get(f"{router.url}/v0/nodes", timeout=5).json()["nodes"]
    return {node["gateway"].rsplit(":", 1)[-1]: node for node in found}


def state(router: Process, node: Process) -> str | None:
    found = nodes(router).get(str(node.node_port))
    if found is None:
        return None
    return "suspect" if found["suspect"] else str(found["state"])


def wait_models(process: Process) -> None:
    """Until the gateway lists a model."""
    wait_until(lambda: httpx.get(f"{process.url}/v1/models").json()["data"], 30, "a model at the gateway")


def test_serve_prints_lines_that_work_when_pasted_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    with cluster(tmp_path, forks=False) as it:
        process = it.start("serve", home="one").wait_ready()
        wait_until(lambda: "Ctrl+C ends it" in process.output(), 15, "the start-up block")
        block = process.output()
        url = re.search(r"curl (http://\S+) .* -d '(.*)'", block)
        assert url is not None
        answer = httpx.post(url[1], content=url[2], headers={"content-type": "application/json"}, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "The capital of Japan is Tokyo."
        assert f"LLMLB_HOST=127.0.0.1:{process.node_port}" in block
        assert "node run smollm2" in block
        family = children(process.popen.pid)
        assert len(family) == 3, "the bus, the history and one engine worker"
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(15) == 0
        assert not any(alive(pid) for pid in family)
        assert "Traceback" not in process.output()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        process = it.start("serve", home="one").wait_ready()
        wait_models(process)

        def cut_off() -> None:
            with pytest.raises(httpx.TransportError):
                ask(process, 900, temperature=0.9)

        thread = threading.Thread(target=cut_off)
        thread.start()
        wait_until(lambda: len(children(process.popen.pid)) == 3, 10, "a worker, beside bus and history")
        time.sleep(2)
        family = children(process.popen.pid)
        process.popen.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.popen.send_signal(signal.SIGINT)
        process.popen.wait(3)
        wait_until(lambda: not any(alive(pid) for pid in family), 5, "no process left")
        thread.join(10)


def test_running_answers_end_before_the_process_does(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        process = it.start("serve", home="one").wait_ready()
        wait_models(process)
        ask(process, 1)
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(ask(process, 100, temperature=0)))
        thread.start()
        time.sleep(0.4)
        began = time.monotonic()
        assert process.stop() == 0
        thread.join(10)
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] > 20
        assert time.monotonic() - began < 20


def test_kill_9_of_the_process_leaves_neither_bus_nor_worker(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        process = it.start("serve", home="one").wait_ready()
        wait_models(process)
        ask(process)
        family = children(process.popen.pid)
        assert len(family) == 3, "the bus, the history and one engine worker"
        process.kill()
        wait_until(lambda: not any(alive(pid) for pid in family), 5, "all of it is gone")


@pytest.mark.parametrize("order", ["node first", "router first", "together", "all in one first"])
def test_processes_find_each_other_in_any_order(tmp_path: Path, order: str) -> None:
    with cluster(tmp_path, forks=order != "together") as it:
        if order == "node first":
            node = it.start("node", "serve", home="node").wait_ready()
            router = it.start("router", "serve", home="router").wait_ready()
        elif order == "router first":
            router = it.start("router", "serve", home="router").wait_ready()
            node = it.start("node", "serve", home="node").wait_ready()
        elif order == "all in one first":
            router = it.start("serve", home="all").wait_ready()
            node = it.start("node", "serve", home="node").wait_ready()
        else:
            node = it.start("node", "serve", home="node")
            router = it.start("router", "serve", home="router").wait_ready()
            node.wait_ready()
        wait_until(lambda: state(router, node) == "online", 20, "the node is online")
        wait_models(router)
        assert ask(router).status_code == 200
        servers = [pid for process in it.processes for pid in children(process.popen.pid)]
        assert len(servers) == 3, "one bus, one history, one worker"


def test_three_nodes_join_share_the_work_die_and_come_back(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        router = it.start("router", "serve", home="router").wait_ready()
        members: list[Process] = []
        for number in range(3):
            node = it.start("node", "serve", home=f"node{number}").wait_ready()
            wait_until(lambda node=node: state(router, node) == "online", 2, f"node {number} is shown")
            members.append(node)
        ids = {port: node["node_id"] for port, node in nodes(router).items()}
        assert len(set(ids.values())) == 3

        # A burst spreads over all of them.
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(router, 40))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 12
        spread = work_done(members)
        assert all(spread.values()), f"every node answered some: {spread}"

        # kill -9 of one: out of routing within 3 s, and not one request is lost meanwhile.
        dead = members[1]
        statuses: list[int] = []
        over = threading.Event()

        def keep_asking() -> None:
            while not over.is_set():
                statuses.append(ask(router).status_code)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        dead.kill()
        killed = time.monotonic()
        wait_until(lambda: state(router, dead) != "online", 3, "the dead node is out of routing")
        assert time.monotonic() - killed < 3.5
        over.set()
        asking.join()
        assert set(statuses) == {200}
        for _ in range(4):
            assert ask(router).status_code == 200
        assert httpx.get(f"{router.url}/v0/status").json()["health"] == "degraded"

        # It comes back by itself, as the same node.
        back = it.start("node", "serve", home="node1").wait_ready()
        wait_until(lambda: state(router, back) == "online", 2, "the node is back")
        assert nodes(router)[str(back.node_port)]["node_id"] == ids[str(dead.node_port)]
        assert len(nodes(router)) == 3
        wait_until(lambda: httpx.get(f"{router.url}/v0/status").json()["health"] == "healthy", 5, "a healthy cluster")


def work_done(members: list[Process]) -> Counter[int]:
    """How many models each node has loaded: a node that answered has one."""
    return Counter({m.node_port or 0: len(httpx.get(f"{m.node_url}/v0/ps").json()["models"]) for m in members})


def test_a_node_serves_its_own_gateway_when_the_router_is_gone(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        router = it.start("router", "serve", home="router").wait_ready()
        node = it.start("node", "serve", home="node").wait_ready()
        wait_models(node)
        assert ask(node).status_code == 200
        router.kill()  # it owned the bus: the node takes the bus over
        wait_until(lambda: node.ready() and ask(node).status_code == 200, 10, "the node answers by itself")
        again = it.start("router", "serve", home="router").wait_ready()
        wait_until(lambda: state(again, node) == "online", 5, "the new router sees the node")
        assert ask(again).status_code == 200


def test_a_bus_that_runs_already_is_used_and_none_is_started(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats").start()
    try:
        with cluster(tmp_path) as it:
            it.bus_port = server.port
            process = it.start("serve", home="one").wait_ready()
            wait_models(process)
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(process.popen.pid)]
            assert not any(b"nats-server" in command for command in commands)
            assert not (tmp_path / "one" / "bus").exists()
            assert process.stop() == 0
            assert server.process is not None
            assert server.process.poll() is None
    finally:
        server.stop()


def test_without_a_bus_the_gateway_says_so_and_recovers_by_itself(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        process = it.start("serve", "--no-embedded-bus", home="one")
        wait_until(lambda: _status(f"{process.url}/health") == 200, 15, "/health")
        assert _status(f"{process.url}/ready") == 503
        answer = ask(process)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "bus_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        server = NatsServer(tmp_path / "nats", port=it.bus_port).start()
        try:
            process.wait_ready()
            wait_models(process)
            assert ask(process).status_code == 200
            server.kill()
            wait_until(lambda: _status(f"{process.url}/ready") == 503, 5, "/ready turns red")
            assert _status(f"{process.url}/health") == 200
            assert ask(process).status_code == 503
            server.start()
            wait_until(lambda: _status(f"{process.url}/ready") == 200, 10, "/ready turns green")
            wait_until(lambda: ask(process).status_code == 200, 10, "answers again")
        finally:
            it.close()
            server.stop()


def _status(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=2).status_code
    except httpx.TransportError:
        return None


def test_a_taken_port_is_one_clear_line_and_exit_1(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        first = it.start("router", "serve", home="router").wait_ready()
        second = it.start("router", "serve", "--port", str(first.router_port), home="other")
        assert second.popen.wait(15) == 1
        assert f"Error: port {first.router_port} on 127.0.0.1 is taken" in second.output()
        assert "Traceback" not in second.output()


def test_two_nodes_never_share_a_home(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        it.start("node", "serve", home="node").wait_ready()
        second = it.start("node", "serve", home="node")
        assert second.popen.wait(15) == 1
        assert "already runs with the home directory" in second.output()
        assert "Traceback" not in second.output()


def test_a_home_that_can_not_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with cluster(tmp_path) as it:
        process = it.start("node", "serve", home="x", LLMLB_HOME=str(tmp_path / "file" / "home"))
        assert process.popen.wait(15) == 1
        assert "Error: the home directory" in process.output()
        assert "Traceback" not in process.output()


def test_a_worker_that_is_killed_takes_only_its_requests_and_comes_back(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        process = it.start("serve", home="one").wait_ready()
        wait_models(process)
        ask(process, 1)
        bus_and_worker = children(process.popen.pid)
        pid = _worker(process)
        question = {"role": "user", "content": "Tell me a very long story."}
        body = {"model": "smollm2", "messages": [question], "max_tokens": 800, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{process.url}/v1/chat/completions", json=body, timeout=60) as answer:
            assert answer.status_code == 200
            parts = answer.iter_text()
            text = next(parts)
            os.kill(pid, signal.SIGKILL)
            text += "".join(parts)
        assert '"code":"engine_crashed"' in text
        assert "[DONE]" not in text, "a failed stream does not look like a whole one"
        assert ask(process).status_code == 200, "the model is loaded again for the next request"
        assert _worker(process) not in bus_and_worker


def _worker(process: Process) -> int:
    (worker,) = [
        pid
        for pid in children(process.popen.pid)
        if b"llmlb.node.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return worker


def test_a_model_is_unloaded_after_its_keep_alive_and_by_stop(tmp_path: Path) -> None:
    with cluster(tmp_path, LLMLB_KEEP_ALIVE="1s") as it:
        process = it.start("serve", home="one").wait_ready()
        wait_models(process)

        def loaded() -> int:
            return len(httpx.get(f"{process.node_url}/v0/ps").json()["models"])

        assert ask(process).status_code == 200
        assert loaded() == 1
        wait_until(lambda: loaded() == 0, 5, "unloaded after a second of idling")
        assert ask(process).status_code == 200
        assert httpx.post(f"{process.node_url}/v0/models/stop", json={"model": "smollm2"}).status_code == 200
        assert loaded() == 0
        assert httpx.post(f"{process.node_url}/v0/models/stop", json={"model": "smollm2"}).status_code == 409


def test_a_keep_alive_of_zero_unloads_after_each_answer_and_loses_none(tmp_path: Path) -> None:
    with cluster(tmp_path, LLMLB_KEEP_ALIVE="0") as it:
        process = it.start("serve", home="one").wait_ready()
        wait_models(process)
        for _ in range(4):
            assert ask(process, 3).status_code == 200
        wait_until(lambda: httpx.get(f"{process.node_url}/v0/ps").json()["models"] == [], 5, "unloaded when it is idle")


def test_a_burst_beyond_the_slots_waits_and_is_answered_whole(tmp_path: Path) -> None:
    with cluster(tmp_path, LLMLB_NUM_PARALLEL="1") as it:
        process = it.start("serve", home="one").wait_ready()
        wait_models(process)
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(process, 5))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 12


def test_auth_off_is_warned_about_at_start(tmp_path: Path) -> None:
    for auth in ("on", "off"):
        with cluster(tmp_path / auth, LLMLB_AUTH=auth) as it:
            process = it.start("router", "serve", home="router").wait_ready()
            assert ("auth_off every peer" in process.output()) == (auth == "off")
