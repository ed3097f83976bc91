"""/v0 of a node's own gateway: what each route asks the node, and with which words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from llmlb.bus.errors import BusDown, Conflict, Forbidden, LlmlbError, ModelUnknown, PullFailed
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.models import ModelRemoved
from llmlb.bus.messages.pulls import PullProgress, PullStarted, TaskCancelled, TaskList
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.router.gateway.app import GatewayServer, build_app
from llmlb.router.gateway.ports import Gateway
from tests.unit.gateway.scripted import Scripted

PROGRESS = PullProgress(
    task_id="0123456789abcdef", node_id="n", model="owner/a", status="pending", phase="waiting", started_at=1.0
)
ADDRESS = "https://huggingface.co/owner/a/blob/main/a-Q4_K_M.gguf?download=true"


class Node:
    """Remembers what it was asked; ``error`` is raised instead of an answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error: LlmlbError | None = None
        self.progress = PROGRESS

    def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def pull(self, model: str) -> PullStarted:
        self._ask("pull", model)
        return PullStarted(task=PROGRESS, attached=True)

    async def tasks(self, task_id: str | None = None) -> TaskList:
        self._ask("tasks", task_id)
        return TaskList(tasks=(self.progress,))

    async def cancel_task(self, task: str, *, purge: bool) -> TaskCancelled:
        self._ask("cancel_task", task, purge)
        return TaskCancelled(task=PROGRESS, kept_bytes=7)

    async def remove(self, model: str) -> ModelRemoved:
        self._ask("remove", model)
        return ModelRemoved(model=model, freed_bytes=7)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[tuple[Node, httpx.AsyncClient]]:
    """A node's gateway, and what stands in for the node."""
    it, scripted = Node(), Scripted()
    server = GatewayServer(
        build_app(
            Gateway(
                role="node",
                settings=Settings.load({}, home=tmp_path),
                version="0",
                inference=scripted,
                models=scripted,
                readiness=scripted,
                router_ops=None,
                node_ops=it,  # type: ignore[arg-type]  # not every operation
                node_id="n",
            )
        )
    )
    await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as client:
            yield it, client
    finally:
        await server.stop(0.1)


Started = tuple[Node, httpx.AsyncClient]


async def test_a_pull_is_accepted_and_told_with_its_state(node: Started) -> None:
    it, client = node
    answer = await client.post("/v0/models/pull", json={"model": ADDRESS})
    assert answer.status_code == 202
    assert (answer.json()["task"]["task_id"], answer.json()["attached"]) == (PROGRESS.task_id, True)
    assert it.asked == [("pull", ADDRESS)]


@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": 5}, {"model": "a", "x": 1}, {"model": "a" * 2000}, []])
async def test_a_pull_of_nothing_sensible_never_reaches_the_node(node: Started, body: object) -> None:
    it, client = node
    answer = await client.post("/v0/models/pull", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"
    assert it.asked == []


async def test_tasks_are_listed_and_one_is_its_state_alone(node: Started) -> None:
    it, client = node
    assert (await client.get("/v0/tasks")).json()["tasks"][0]["status"] == "pending"
    assert (await client.get(f"/v0/tasks/{PROGRESS.task_id}")).json()["status"] == "pending"
    assert it.asked == [("tasks", None), ("tasks", PROGRESS.task_id)]


@pytest.mark.parametrize("task", ["0123456789abcdef", "owner/a", "owner/a:Q4_K_M", ADDRESS, "a b%2F?#é"])
async def test_a_task_is_cancelled_by_whatever_it_was_asked_for_with(node: Started, task: str) -> None:
    it, client = node
    path = GatewayClient(Settings.load({}), "node").task_path(task)
    for query, purge in (("", False), ("?purge=0", False), ("?purge=1", True), ("?purge=true", True)):
        answer = await client.delete(path + query)
        assert (answer.status_code, answer.json()["kept_bytes"]) == (200, 7)
        assert it.asked[-1] == ("cancel_task", task, purge)


async def test_a_purge_that_is_neither_yes_nor_no_is_refused(node: Started) -> None:
    it, client = node
    assert (await client.delete("/v0/tasks/x?purge=maybe")).status_code == 400
    assert it.asked == []


@pytest.mark.parametrize("model", ["owner/a", "owner/a:Q4_K_M", "ollama:x", "smollm2", "a b%2F?#é"])
async def test_a_model_is_removed_by_its_name(node: Started, model: str) -> None:
    it, client = node
    path = GatewayClient(Settings.load({}), "node").model_path(model)
    assert (await client.delete(path)).json()["freed_bytes"] == 7
    assert it.asked == [("remove", model)]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ModelUnknown("no"), 404), (Forbidden("read-only"), 403), (Conflict("busy"), 409), (BusDown("away"), 503)],
)
async def test_what_the_node_refuses_has_its_status_and_its_words(
    node: Started, error: LlmlbError, status: int
) -> None:
    it, client = node
    it.error = error
    for answer in (
        await client.post("/v0/models/pull", json={"model": "a"}),
        await client.get("/v0/tasks/x"),
        await client.delete("/v0/tasks/x"),
        await client.delete("/v0/models/x"),
    ):
        assert answer.status_code == status
        assert answer.json()["error"]["message"] == error.message
        assert answer.json()["error"]["code"] == error.reason


async def test_a_double_slash_in_a_path_survives_when_it_is_not_quoted(node: Started) -> None:
    it, client = node
    await client.delete("/v0/tasks/" + quote("https://hf.co/owner/a", safe=":/"))
    assert it.asked == [("cancel_task", "https://hf.co/owner/a", False)]


async def test_the_diagnostic_of_a_failed_pull_stays_in_the_log(node: tuple[Node, httpx.AsyncClient]) -> None:
    it, client = node
    error = WireError.of(PullFailed("it can't be read", detail="/home/me: HTTP 500 with https://cdn/x?Signature=s"))
    it.progress = PROGRESS.model_copy(update={"status": "failed", "error": error})
    for path in ("/v0/tasks", "/v0/tasks/0123456789abcdef"):
        answer = await client.get(path)
        assert "it can't be read" in answer.text
        assert "Signature" not in answer.text
        assert "/home/me" not in answer.text
