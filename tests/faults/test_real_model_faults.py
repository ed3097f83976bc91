"""Nodes and workers that die under the real model: at temperature 0 every answer is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cluster import START_TIMEOUT_S, Process, children, wait_until
from tests.support.simcluster import SimCluster, simcluster, usable, views
from tests.support.traffic import Seen, Traffic, verdicts

MODEL = "smollm2"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
PETS = {
    "type": "object",
    "properties": {"pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "minItems": 14, "maxItems": 14}},
    "required": ["pets"],
}


def question(text: str, **more: Any) -> dict[str, Any]:
    base = {"messages": [{"role": "user", "content": text}], "temperature": 0, "seed": 1, "max_tokens": 70}
    return {**base, **more}


BODIES = [
    question("Tell me a story about a fox."),
    question("Explain in detail how a bicycle works."),
    question("What is the weather in Tokyo for 3 days?", tools=[WEATHER], tool_choice="required"),
    question(
        "Which pets do people have?",
        response_format={"type": "json_schema", "json_schema": {"name": "pets", "schema": PETS}},
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCluster]:
    """A router, and two nodes with the demo model."""
    settings = {"LLMLB_NUM_PARALLEL": "4", "LLMLB_STALL_TIMEOUT": "20s"}
    with simcluster(tmp_path_factory.mktemp("real"), self_test=True, **settings) as it:
        it.start_router()
        for name in ("one", "two"):
            it.start_real_node(name)
        yield it


def answer(seen: Seen) -> tuple[str, str]:
    assert seen.verdict == "ok", (seen.errors, seen.broken)
    return seen.text, seen.calls


@pytest.fixture(scope="module")
def undisturbed(cluster: SimCluster) -> list[tuple[str, str]]:
    """The answers while all is well."""
    router = cluster.routers[0]
    wait_until(router.ready, START_TIMEOUT_S, "/ready")
    both_loaded(cluster)
    traffic = cluster.traffic(MODEL)
    answers = [answer(one.result()) for one in [traffic.send(body) for body in BODIES]]
    assert all(text or calls for text, calls in answers)
    assert "get_weather" in answers[2][1]
    assert len(json.loads(answers[3][0])["pets"]) == 14
    return answers


def both_loaded(cluster: SimCluster) -> None:
    """Ask each node over its own gateway, so that each has the model in memory, and wait until the router knows."""
    body = {"model": MODEL, **question("Hi", max_tokens=1)}

    def loaded(node: Process) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.post(f"{node.node_url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        return False

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: wait_until(lambda: loaded(node), 60, "it answers"), cluster.real_nodes))
    router = cluster.routers[0]
    wait_until(lambda: sum(usable(view) for view in views(router).values()) == 2, 20, "the router knows")


def workers(process: Process) -> list[int]:
    """Pids of the engine workers of a node."""
    found = []
    for pid in children(process.popen.pid):
        if b"llmlb.node.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(pid)
    return found


def in_the_middle(cluster: SimCluster, traffic: Traffic) -> tuple[list[Future[Seen]], Process]:
    """Every question asked and most answers begun; and the node that has most of them."""
    both_loaded(cluster)
    router = cluster.routers[0]
    asked = [traffic.send(body) for body in BODIES]
    wait_until(lambda: sum(len(one.times) >= 3 for one in list(traffic.under_way)) >= 3, 60, "they run")
    known = views(router)
    gateway = known[max(known, key=lambda node_id: known[node_id]["running"])]["gateway"]
    return asked, next(node for node in cluster.real_nodes if gateway.endswith(f":{node.node_port}"))


def migrations(router: Process) -> int:
    """Answers that were carried on elsewhere since the router began."""
    text = httpx.get(f"{router.url}/metrics", timeout=10).text
    return sum(int(float(number)) for number in re.findall(r"llmlb_migrations_total{[^}]*} (\S+)", text))


@pytest.mark.parametrize("what", ["worker", "node"])
def test_answers_are_word_for_word_the_same_when_what_makes_them_is_killed(
    cluster: SimCluster, undisturbed: list[tuple[str, str]], what: str
) -> None:
    router = cluster.routers[0]
    traffic = cluster.traffic(MODEL)
    before = migrations(router)
    asked, victim = in_the_middle(cluster, traffic)
    killed_at = time.monotonic()
    if what == "worker":
        (pid,) = workers(victim)
        os.kill(pid, signal.SIGKILL)
    else:
        victim.kill()
    seen = [one.result() for one in asked]
    assert verdicts(seen) == {"ok": len(BODIES)}
    assert [(one.text, one.calls) for one in seen] == undisturbed
    # How many moved is not asserted: on a slow machine those on the victim may have ended by then.
    print(f"answers that moved: {migrations(router) - before:.0f}")
    print(f"from the kill of the {what} to the next token: {max(one.gap_s(killed_at) for one in seen):.2f} s at most")
