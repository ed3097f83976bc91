"""Downloads of registered models: how far they are, cancelled, asked for again, for nodes that are away."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from llmlb.bus.errors import (
    Conflict,
    ModelDownloading,
    ModelUnknown,
    NoCapableNode,
)
from llmlb.bus.messages.hub import CancelClusterTask, DeleteModel, DownloadModel
from tests.conftest import MakeBus
from tests.support.hub_catalog import CatalogHub
from tests.support.model_hub import RouterRig, until
from tests.support.model_rig import FILE, NAME, REPO, ready
from tests.support.pulls import MIB, PullNode


async def test_a_request_for_a_model_on_its_way_is_told_how_far_it_is(router: RouterRig, node: PullNode) -> None:
    node.hub.budget = MIB // 2
    await router.register(REPO, aliases=("short",))
    await until(lambda: (task := router.hub.board.all()) and task[0].downloaded_bytes >= MIB // 4)
    for name in (NAME, REPO, "short"):
        with pytest.raises(ModelDownloading, match=r"\d+% of 1048576 bytes") as caught:
            await router.fleet.check(name)
        assert 1 <= caught.value.retry_after_s <= 60
    with pytest.raises(ModelUnknown):
        await router.fleet.check(f"{REPO}:Q2_K")
    node.hub.release()
    await ready(router)


async def test_a_file_that_disappeared_is_an_error_on_the_node_and_can_be_asked_for_again(
    router: RouterRig, node: PullNode
) -> None:
    node.hub.budget = 0
    await router.register(REPO)
    files = node.hub.repos[REPO].commits[node.hub.repos[REPO].head]
    kept = files.pop(FILE)
    node.hub.release()
    await until(lambda: router.states(NAME) == ["error"])
    model = router.model(NAME)
    assert model is not None
    assert (model.lifecycle_status, model.status) == ("error", "available")
    assert "is not on" in (model.nodes[0].error or "")
    with pytest.raises(NoCapableNode, match="could not be downloaded"):
        router.fleet.explain(NAME)
    files[FILE] = kept
    done = await router.hub.download(DownloadModel(model=NAME, all=True))
    assert done.attached == ()
    await ready(router)


async def test_a_node_with_a_model_that_can_not_be_fetched_still_works(router: RouterRig, node: PullNode) -> None:
    """Otherwise one bad registration keeps every node that starts again out of the cluster."""
    node.hub.budget = 0
    await router.register(REPO)
    node.hub.repos[REPO].commits[node.hub.repos[REPO].head].clear()
    node.hub.release()
    await until(lambda: router.states(NAME) == ["error"])
    message = node.agent.heart.message()
    assert (message.models_ready, message.models_total) == (0, 0)


async def test_a_download_that_was_cancelled_stays_so_until_it_is_asked_for(router: RouterRig, node: PullNode) -> None:
    node.hub.budget = MIB // 2
    await router.register(REPO)
    (task,) = await until(router.hub.board.all)
    await until(lambda: router.hub.board.all()[0].downloaded_bytes)
    shown = router.hub.tasks(task.task_id).tasks[0]
    assert shown.id == f"{node.node_id}.{task.task_id}"
    done = await router.hub.cancel(CancelClusterTask(task=shown.id))
    assert [one.task.status for one in done.tasks] == ["cancelled"]
    with pytest.raises(Conflict):
        await router.hub.cancel(CancelClusterTask(task=shown.id))
    assert node.agent.models is not None
    await node.agent.models.sync._compare()
    assert (await node.task(task.task_id)).status == "cancelled", "the registry does not begin it anew by itself"
    assert router.states(NAME) == ["registered"]
    node.hub.release()
    asked = await router.hub.download(DownloadModel(model=NAME, all=True))
    assert asked.tasks[0].task.status in ("pending", "downloading", "completed")
    await ready(router)


async def test_a_model_that_was_deleted_during_its_download_is_fetched_at_once_when_it_is_registered_again(
    router: RouterRig, node: PullNode
) -> None:
    node.hub.budget = MIB // 2
    await router.register(REPO)
    await until(lambda: (task := router.hub.board.all()) and task[0].downloaded_bytes)
    await router.hub.delete(DeleteModel(model=NAME))
    await until(lambda: router.hub.board.all()[0].status == "cancelled")
    await router.register(REPO)
    node.hub.release()
    await ready(router)


async def test_the_same_download_twice_attaches(router: RouterRig, node: PullNode) -> None:
    node.hub.budget = MIB // 2
    await router.register(REPO)
    await until(lambda: (task := router.hub.board.all()) and task[0].downloaded_bytes)
    done = [await router.hub.download(DownloadModel(model=NAME, all=True)) for _ in range(2)]
    assert done[0].attached == done[1].attached == (done[0].tasks[0].id,)
    assert await node.queued() == 1
    node.hub.release()
    await ready(router)


async def test_a_node_that_is_away_fetches_it_when_it_is_back(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str, router: RouterRig
) -> None:
    node_id = uuid.uuid4().hex
    first = await PullNode(tmp_path / "node", node_id, hub).start(make_bus, url=url)
    await until(lambda: router.fleet.members.state(node_id) == "online")
    await first.stop()
    await first.bus.close()
    await until(lambda: router.fleet.members.state(node_id) == "offline")
    await router.register(REPO)
    assert router.states(NAME) == ["registered"]
    done = [await router.hub.download(DownloadModel(model=NAME, all=True)) for _ in range(3)]
    assert [one.tasks[0].task.status for one in done] == ["pending"] * 3
    assert [len(one.attached) for one in done] == [0, 1, 1]
    assert router.states(NAME) == ["pending"]
    second = await PullNode(tmp_path / "node", node_id, hub).start(make_bus, url=url)
    await ready(router)
    await second.until_acked()
    await second.stop()
    await second.bus.close()


async def test_a_download_for_a_node_that_is_away_can_be_cancelled(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str, router: RouterRig
) -> None:
    node_id = uuid.uuid4().hex
    first = await PullNode(tmp_path / "node", node_id, hub).start(make_bus, url=url)
    await until(lambda: router.fleet.members.state(node_id) == "online")
    await first.stop()
    await first.bus.close()
    await router.register(REPO)
    done = await router.hub.download(DownloadModel(model=NAME, nodes=(node_id,)))
    await router.hub.cancel(CancelClusterTask(task=done.tasks[0].id))
    second = await PullNode(tmp_path / "node", node_id, hub).start(make_bus, url=url)
    await second.until_acked()
    assert (await second.task(done.tasks[0].task.task_id)).status == "cancelled"
    assert second.names == []
    await second.stop()
    await second.bus.close()
