"""Pulls as tasks on the bus: asked for, watched, attached to, cancelled. A real bus, a real hub client, a local hub."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.errors import Conflict, InvalidRequest, LlmlbError, ModelUnknown
from llmlb.bus.hub_names import Wanted, parse_name
from llmlb.bus.messages.pulls import PullProgress, PullTask
from llmlb.node.pull.tasks import task_id_of, title_of
from tests.conftest import MakeBus
from tests.support.held_pull import DATA, DATA_Q8, FILE, REPO, held, pull_hub
from tests.support.hub import LocalHub
from tests.support.pulls import MIB, PullNode, eventually, gguf_bytes, pull_node


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with pull_hub() as made:
        yield made


@pytest.fixture
async def node(make_bus: MakeBus, tmp_path: Path, hub: LocalHub) -> AsyncIterator[PullNode]:
    async with pull_node(make_bus, tmp_path / "node", hub) as made:
        yield made


def parts(node: PullNode) -> list[str]:
    return sorted(path.name for path in (node.models / ".pulling").rglob("*.part"))


async def test_a_pull_ends_as_a_model_that_can_be_asked(node: PullNode) -> None:
    started = await node.rpc.pull(REPO)
    assert (started.attached, started.task.status, started.task.model) == (False, "pending", REPO)
    done = await node.over(started.task.task_id)
    assert (done.status, done.phase, done.error) == ("completed", "done", None)
    assert (done.name, done.total_bytes, done.downloaded_bytes) == (REPO, len(DATA), len(DATA))
    assert done.alias
    assert [(file.name, file.digest) for file in done.files] == [(FILE, hashlib.sha256(DATA).hexdigest())]
    assert (node.models / REPO / FILE).read_bytes() == DATA
    assert node.names == [REPO]
    assert (await node.rpc.show(done.alias)).model.name == REPO
    assert node.hub.served() == len(DATA), "each byte once"
    await node.until_acked()


async def test_a_name_in_another_case_is_the_same_model(node: PullNode) -> None:
    other = REPO.upper()
    done = await node.over((await node.rpc.pull(other)).task.task_id)
    assert (done.status, done.name) == ("completed", REPO), "as the hub writes it"
    assert (await node.over((await node.rpc.pull(REPO)).task.task_id)).name == REPO
    assert (await node.over((await node.rpc.pull(other.title())).task.task_id)).name == REPO
    assert node.names == [REPO]
    assert node.hub.served() == len(DATA), "each byte once"
    await node.until_acked()


async def test_a_pull_in_another_case_is_purged_by_that_name(node: PullNode) -> None:
    node.hub.budget = MIB
    started = await node.rpc.pull(REPO.upper())
    await asyncio.to_thread(node.hub.wait_served, MIB)
    assert parts(node) == [f"{FILE}.part"]
    await node.rpc.cancel_task(started.task.task_id, purge=True)
    assert parts(node) == []


async def test_a_second_pull_attaches_and_a_third_finds_everything_there(node: PullNode) -> None:
    task_id = await held(node)
    again = await node.rpc.pull(f"https://huggingface.co/{REPO}")
    assert (again.attached, again.task.task_id) == (True, task_id)
    node.hub.release()
    assert (await node.over(task_id)).status == "completed"
    third = await node.rpc.pull(REPO)
    assert not third.attached
    done = await node.over(task_id)
    assert done.started_at == third.task.started_at
    assert (done.status, done.name, done.downloaded_bytes) == ("completed", REPO, len(DATA))
    assert node.hub.served() == len(DATA)
    assert len((await node.rpc.tasks()).tasks) == 1


async def test_progress_comes_over_the_bus_while_bytes_flow(node: PullNode, make_bus: MakeBus) -> None:
    other, seen = await make_bus(), list[PullProgress]()

    async def see(msg: Msg) -> None:
        seen.append(codec.decode_as(PullProgress, msg.data))

    await other.subscribe(subjects.node_progress(node.node_id), see)
    node.hub.budget = 0
    task_id = (await node.rpc.pull(REPO)).task.task_id
    for _ in range(4):
        before = len(seen)
        node.hub.refund(512 * 1024)
        async with asyncio.timeout(10):
            while len(seen) < before + 2:
                await asyncio.sleep(0.02)
    node.hub.release()
    await node.over(task_id)
    async with asyncio.timeout(10):
        while not seen or seen[-1].status != "completed":
            await asyncio.sleep(0.02)
    assert all(one.node_id == node.node_id and one.task_id == task_id for one in seen)
    flowing = [one.downloaded_bytes for one in seen if one.phase == "downloading"]
    assert flowing == sorted(flowing)
    assert len(set(flowing)) >= 3
    last = await other.client.jetstream().get_last_msg(
        subjects.STREAM_PROGRESS, subjects.progress(node.node_id, task_id)
    )
    assert codec.decode_as(PullProgress, last.data or b"").status == "completed"


async def test_cancel_keeps_the_partial_file_and_another_pull_goes_on_from_it(node: PullNode) -> None:
    task_id = await held(node)
    cancelled = await node.rpc.cancel_task(REPO, purge=False)
    assert (cancelled.task.task_id, cancelled.task.status) == (task_id, "cancelled")
    assert cancelled.kept_bytes > 0
    assert parts(node) == [f"{FILE}.part"]
    await node.until_acked()
    with pytest.raises(Conflict, match="over: cancelled"):
        await node.rpc.cancel_task(task_id, purge=False)
    node.hub.release()
    again = await node.rpc.pull(REPO)
    assert not again.attached
    assert (await node.over(task_id)).status == "completed"
    assert node.hub.served() < len(DATA) + MIB
    assert (node.models / REPO / FILE).read_bytes() == DATA


async def test_cancel_with_purge_drops_the_partial_file(node: PullNode) -> None:
    task_id = await held(node)
    cancelled = await node.rpc.cancel_task(task_id, purge=True)
    assert (cancelled.task.status, cancelled.kept_bytes) == ("cancelled", 0)
    assert parts(node) == []


async def test_a_cancelled_pull_can_be_purged_later(node: PullNode) -> None:
    task_id = await held(node)
    assert (await node.rpc.cancel_task(task_id, purge=False)).kept_bytes > 0
    assert (await node.rpc.cancel_task(task_id, purge=True)).kept_bytes == 0
    assert parts(node) == []


async def test_purging_a_pull_leaves_what_another_one_of_the_repo_has(node: PullNode) -> None:
    first = await held(node)
    await node.rpc.cancel_task(first, purge=False)
    second = await held(node, MIB, f"{REPO}:Q8_0")
    assert parts(node) == [f"{FILE}.part", "model-Q8_0.gguf.part"]
    assert (await node.rpc.cancel_task(second, purge=True)).kept_bytes > 0
    assert parts(node) == [f"{FILE}.part"]
    third = await held(node, MIB, f"{REPO}:Q8_0")
    assert (await node.rpc.cancel_task(first, purge=True)).kept_bytes > 0, "while another one runs, too"
    assert parts(node) == ["model-Q8_0.gguf.part"]
    node.hub.release()
    assert (await node.over(third)).status == "completed"


async def test_a_pull_that_waits_for_its_turn_keeps_what_it_has_when_another_is_purged(
    make_bus: MakeBus, tmp_path: Path, hub: LocalHub
) -> None:
    hub.add("own/other", {"other-Q4_K_M.gguf": DATA_Q8})
    async with pull_node(make_bus, tmp_path, hub, pull_parallel=1) as node:
        first = await held(node)
        await node.rpc.cancel_task(first, purge=False)
        second = await held(node, MIB, f"{REPO}:Q8_0")
        await node.rpc.cancel_task(second, purge=False)
        await held(node, MIB, "own/other")
        assert (await node.rpc.pull(REPO)).task.status == "pending"
        await node.rpc.cancel_task(second, purge=True)
        assert parts(node) == [f"{FILE}.part", "other-Q4_K_M.gguf.part"]
        hub.release()
        assert (await node.over(first)).status == "completed"


async def test_a_pull_that_waits_for_its_turn_can_be_cancelled(
    make_bus: MakeBus, tmp_path: Path, hub: LocalHub
) -> None:
    hub.add("own/other", {"other-Q4_K_M.gguf": DATA_Q8})
    async with pull_node(make_bus, tmp_path, hub, pull_parallel=1) as node:
        first = await held(node)
        waiting = (await node.rpc.pull("own/other")).task.task_id
        assert (await node.task(waiting)).status == "pending"
        assert (await node.rpc.cancel_task("own/other", purge=False)).task.status == "cancelled"
        hub.release()
        assert (await node.over(first)).status == "completed"
        await node.until_acked()
        assert not hub.requests("cdn", "other")


async def test_two_repos_are_pulled_at_once(node: PullNode) -> None:
    node.hub.add("own/other", {"other-Q4_K_M.gguf": gguf_bytes(2 * MIB, seed=3)})
    node.hub.budget = MIB
    tasks = [(await node.rpc.pull(model)).task.task_id for model in (REPO, "own/other")]

    async def both_run() -> bool:
        return len({seen.path for seen in node.hub.requests("cdn")}) == 2

    await eventually(both_run)
    node.hub.release()
    assert [(await node.over(task)).status for task in tasks] == ["completed", "completed"]
    assert node.names == [REPO, "own/other"]


async def test_two_quantizations_of_a_repo_come_one_after_the_other(node: PullNode) -> None:
    first = await held(node)
    second = (await node.rpc.pull(f"{REPO}:Q8_0")).task.task_id
    assert second != first
    assert (await node.task(second)).status == "pending"
    assert not node.hub.requests("cdn", "Q8_0")
    node.hub.release()
    assert {(await node.over(task)).status for task in (first, second)} == {"completed"}
    assert node.names == [f"{REPO}:Q4_K_M", f"{REPO}:Q8_0"]


@pytest.mark.parametrize(
    ("model", "reason", "text"),
    [
        ("own/nothing", "model_not_found", "own/nothing"),
        ("own/empty", "pull_failed", "no model inside"),
        ("own/gated", "unauthenticated", "HF_TOKEN"),
        (f"{REPO}:Q2_K", "pull_failed", "Q4_K_M, Q8_0"),
        (f"https://huggingface.co/{REPO}/blob/main/none.gguf", "pull_failed", "none.gguf"),
    ],
)
async def test_a_lasting_cause_ends_a_pull_and_stays_visible(
    node: PullNode, model: str, reason: str, text: str
) -> None:
    node.hub.add("own/empty", {"README.md": b"nothing", "notes.txt": b"here"})
    node.hub.add("own/gated", {FILE: DATA}, gated=True)
    task_id = (await node.rpc.pull(model)).task.task_id
    failed = await node.over(task_id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.reason == reason
    assert text in failed.error.message
    await node.until_acked()
    assert [task.task_id for task in (await node.rpc.tasks()).tasks] == [task_id]
    assert node.hub.served() == 0


@pytest.mark.parametrize(
    "name", ["", "one", "../up/x", "a/b/c", "own/model:", "own/mo del", "x/" + "y" * 300, "http://evil/a/b"]
)
async def test_a_bad_name_is_refused_at_once(node: PullNode, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await node.rpc.pull(name)
    assert (await node.rpc.tasks()).tasks == ()


async def test_a_task_that_nobody_knows_is_an_error(node: PullNode) -> None:
    for ask in (node.rpc.tasks("0" * 16), node.rpc.cancel_task("0" * 16, purge=False), node.rpc.tasks("own/none")):
        with pytest.raises(ModelUnknown, match="no pull"):
            await ask


async def test_a_task_from_elsewhere_is_worked_and_a_bad_one_is_dropped(node: PullNode, make_bus: MakeBus) -> None:
    other = await make_bus()
    where, wanted = subjects.pull(node.node_id), Wanted("own", "model")
    await other.client.jetstream().publish(where, b"{}")
    await other.publish_stored(where, PullTask(task_id="0" * 16, model="no name"))
    await other.publish_stored(where, PullTask(task_id=task_id_of(wanted), model=REPO, origin="sync"))
    await eventually(lambda: _known(node, task_id_of(wanted)))
    done = await node.over(task_id_of(wanted))
    assert (done.status, done.origin) == ("completed", "sync")
    await node.until_acked()
    assert node.pulls._means.store.origins(REPO) == {"sync"}
    await node.rpc.pull(REPO)
    await node.until_acked()
    await node.over(task_id_of(wanted))
    assert node.pulls._means.store.origins(REPO) == {"sync", "user"}


async def _known(node: PullNode, task_id: str) -> bool:
    try:
        await node.task(task_id)
    except LlmlbError:
        return False
    return True


def test_a_task_has_one_id_and_a_title_that_is_read_back() -> None:
    for text in (
        "own/model",
        "own/model:Q4_0",
        "https://huggingface.co/own/model/blob/main/sub/x.gguf",
        "https://hf.co/own/model/tree/v2",
        "https://hf.co/own/model/resolve/refs/pr/3/x.gguf?download=true",
    ):
        wanted = parse_name(text)
        assert parse_name(title_of(wanted)) == wanted
        assert task_id_of(parse_name(title_of(wanted))) == task_id_of(wanted)
