"""Removing what was pulled: whole models, broken ones, ones that are read-only or being pulled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmlb.bus.errors import Conflict, Forbidden, ModelUnknown
from tests.conftest import MakeBus
from tests.support.held_pull import DATA, FILE, REPO, pull_hub
from tests.support.hub import LocalHub
from tests.support.pulls import PullNode, pull_node


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with pull_hub() as made:
        yield made


@pytest.fixture
async def node(make_bus: MakeBus, tmp_path: Path, hub: LocalHub) -> AsyncIterator[PullNode]:
    async with pull_node(make_bus, tmp_path / "node", hub) as made:
        yield made


async def test_remove_deletes_the_files_and_is_refused_while_a_pull_runs(node: PullNode) -> None:
    task_id = (await node.rpc.pull(REPO)).task.task_id
    await node.over(task_id)
    node.hub.budget = 0
    other = (await node.rpc.pull(f"{REPO}:Q8_0")).task.task_id
    with pytest.raises(Conflict, match="a pull of own/model is running"):
        await node.rpc.remove(REPO)
    await node.rpc.cancel_task(other, purge=True)
    removed = await node.rpc.remove(REPO)
    assert removed.freed_bytes >= len(DATA)
    assert node.names == []
    assert not (node.models / REPO).exists()
    with pytest.raises(ModelUnknown):
        await node.rpc.remove(REPO)


@pytest.mark.parametrize("name", [REPO, f"{REPO}:Q4_K_M", "the alias"])
async def test_a_model_that_lost_its_file_is_removed_by_its_name(node: PullNode, name: str) -> None:
    done = await node.over((await node.rpc.pull(REPO)).task.task_id)
    (node.models / REPO / FILE).unlink()
    await node.pulls._changed()
    with pytest.raises(ModelUnknown, match="is missing; pull it again"):
        await node.rpc.show(REPO)
    assert done.alias is not None
    removed = await node.rpc.remove(done.alias if name == "the alias" else name)
    assert removed.model == f"{REPO}:Q4_K_M"
    assert not (node.models / REPO).exists()
    with pytest.raises(ModelUnknown, match=r"was not found$"):
        await node.rpc.remove(REPO)


async def test_what_is_read_only_is_not_removed(node: PullNode) -> None:
    catalog = node.agent._catalog
    await node.over((await node.rpc.pull(REPO)).task.task_id)
    model = catalog.resolve(REPO)
    locked = replace(
        model,
        info=model.info.model_copy(
            update={"name": "ollama:x", "readonly": True, "source": "Ollama", "aliases": (), "also": ()}
        ),
    )
    catalog._sources.append(type("One", (), {"scan": lambda self: [locked]})())
    catalog.rescan()
    with pytest.raises(Forbidden, match="read-only"):
        await node.rpc.remove("ollama:x")
    assert (node.models / REPO / FILE).exists()
