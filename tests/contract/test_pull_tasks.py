"""Pulls as tasks on the bus: asked for, watched, attached to, cancelled. A real bus, a real hub client, a local hub."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import Conflict, Forbidden, InvalidRequest, LlmlbError, ModelUnknown
from llmlb.bus.messages.pulls import PullProgress, PullTask
from llmlb.node.pull.names import Wanted
from llmlb.node.pull.tasks import task_id_of, title_of
from tests.conftest import MakeBus
from tests.support.hub import LocalHub
from tests.support.natsd import NatsServer
from tests.support.pulls import MIB, PullNode, eventually, gguf_bytes, pull_node

REPO, FILE = "own/model", "model-Q4_K_M.gguf"
DATA = gguf_bytes(3 * MIB + 77)
DATA_Q8 = gguf_bytes(2 * MIB + 5, "Q8_0", seed=2)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as made:
        made.add(REPO, {FILE: DATA, "model-Q8_0.gguf": DATA_Q8, "README.md": b"hello"})
        yield made


@pytest.fixture
async def node(make_bus: MakeBus, tmp_path: Path, hub: LocalHub) -> AsyncIterator[PullNode]:
    async with pull_node(make_bus, tmp_path / "node", hub) as made:
        yield made


async def held(node: PullNode, budget: int = MIB, model: str = REPO) -> str:
    """A pull that has got ``budget`` bytes and waits for more; its task id."""
    node.hub.budget = budget
    started = await node.rpc.pull(model)
    await node.until(started.task.task_id, lambda task: task.downloaded_bytes > 0)
    return started.task.task_id


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


async def test_what_does_not_fit_on_the_disk_is_refused_before_the_first_byte(
    node: PullNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pulls._means.room._free = lambda folder: 1_000_000
    failed = await node.over((await node.rpc.pull(REPO)).task.task_id)
    assert failed.error is not None
    assert failed.error.reason == "out_of_disk"
    assert str(len(DATA)) in failed.error.message
    assert "1000000" in failed.error.message
    assert node.hub.served() == 0


async def test_running_pulls_count_for_the_room_of_the_next(node: PullNode) -> None:
    node.hub.add("own/other", {"other-Q4_K_M.gguf": gguf_bytes(2 * MIB, seed=3)})
    node.pulls._means.room._free = lambda folder: 6 * MIB + 1000
    first = await held(node, 64 * 1024)
    failed = await node.over((await node.rpc.pull("own/other")).task.task_id)
    assert failed.error is not None
    assert "other pulls" in failed.error.message
    node.hub.release()
    assert (await node.over(first)).status == "completed"


@pytest.mark.parametrize("freed", [True, False])
async def test_a_disk_that_fills_up_is_waited_for(node: PullNode, monkeypatch: pytest.MonkeyPatch, freed: bool) -> None:
    """The second file meets a disk that is full, until something is freed, or for good."""
    node.hub.add("own/two", {"a-00001-of-00002.gguf": DATA, "a-00002-of-00002.gguf": gguf_bytes(MIB, seed=9)})
    real, full = shutil.disk_usage, True

    def usage(path: Path) -> object:
        there = (node.models / ".pulling" / "own" / "two" / "a-00001-of-00002.gguf").exists()
        return type("Usage", (), {"free": 1000 if full and there else real(path).free})

    monkeypatch.setattr(shutil, "disk_usage", usage)
    node.pulls._means.room._wait_s = 30.0 if freed else 0.5
    node.pulls._means.room._poll_s = 0.05
    task_id = (await node.rpc.pull("own/two")).task.task_id
    if freed:
        waiting = await node.until(task_id, lambda task: "freed" in (task.note or ""))
        assert waiting.status == "downloading"
        full = False
    done = await node.over(task_id)
    if freed:
        assert done.status == "completed"
    else:
        assert done.error is not None
        assert done.error.reason == "out_of_disk"
        assert (node.models / ".pulling" / "own" / "two" / "a-00001-of-00002.gguf").exists(), "what came is kept"


async def test_a_node_that_ends_goes_on_when_it_is_back(make_bus: MakeBus, tmp_path: Path, hub: LocalHub) -> None:
    node_id = uuid.uuid4().hex
    first = await PullNode(tmp_path, node_id, hub).start(make_bus)
    done = (await first.rpc.pull(f"{REPO}:Q8_0")).task.task_id
    await first.over(done)
    task_id = await held(first)
    before = hub.served()
    await first.stop()
    assert await first.queued() == 1
    await first.bus.close()
    hub.release()
    second = await PullNode(tmp_path, node_id, hub).start(make_bus)
    try:
        assert (await second.over(task_id)).status == "completed"
        assert hub.served() - before < len(DATA)
        assert (await second.task(done)).name == REPO, "an earlier life's task is still known"
        assert second.names == [f"{REPO}:Q4_K_M", f"{REPO}:Q8_0"]
        await second.until_acked()
    finally:
        await second.stop()


@pytest.mark.parametrize("lost", ["while it is away", "while it runs"])
async def test_a_task_that_the_bus_has_lost_is_put_back(
    make_bus: MakeBus, tmp_path: Path, hub: LocalHub, lost: str
) -> None:
    """The stream of tasks is gone, what was told of the pull is still there."""
    server = NatsServer(tmp_path / "nats").start()
    node_id = uuid.uuid4().hex
    node = await PullNode(tmp_path, node_id, hub).start(make_bus, url=server.url)
    try:
        task_id = await held(node)
        done = (await node.rpc.pull("own/nothing")).task.task_id
        assert (await node.over(done)).status == "failed"
        js = node.bus.client.jetstream()
        if lost == "while it runs":
            await js.delete_stream(subjects.STREAM_PULLS)
            server.kill()
            server.start()
            await eventually(lambda: _is_back(node.bus))
        else:
            await node.agent.drain(1)
            await js.delete_stream(subjects.STREAM_PULLS)
            await node.agent.close()
            await node.bus.close()
            node = await PullNode(tmp_path, node_id, hub).start(make_bus, url=server.url)
        hub.release()
        assert (await node.over(task_id)).status == "completed"
        assert (node.models / REPO / FILE).read_bytes() == DATA
        await node.until_acked()
        assert (await node.task(done)).status == "failed", "what was over is not begun again"
    finally:
        await node.stop()
        await node.bus.close()
        server.stop()


async def _is_back(bus: Bus) -> bool:
    """The connection, and the stream: whoever needs it makes it."""
    if not bus.connected or bus.reconnects != 1:
        return False
    try:
        await bus.client.jetstream().stream_info(subjects.STREAM_PULLS)
    except NotFoundError:
        return False
    return True


@pytest.mark.parametrize("silent", ["the hub", "its answer where the file is"])
async def test_a_hub_that_is_silent_holds_nobody_up(
    make_bus: MakeBus, tmp_path: Path, hub: LocalHub, silent: str
) -> None:
    """A cancel is done and a node ends, though a thread still waits for the hub."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with pull_node(make_bus, tmp_path, hub) as node:
            access = node.pulls._means.hub
            task_id = await held(node)
            if silent == "the hub":
                access.endpoint = url
                waiting = (await node.rpc.pull("own/other")).task.task_id
                await node.until(waiting, lambda task: task.phase == "manifest")
            else:
                await node.rpc.cancel_task(task_id, purge=True)
                asked, locate = asyncio.Event(), access.locate
                loop = asyncio.get_running_loop()

                def locate_there(*args: object) -> object:
                    access.endpoint = url
                    loop.call_soon_threadsafe(asked.set)
                    return locate(*args)

                access.locate = locate_there
                waiting = (await node.rpc.pull(REPO)).task.task_id
                await asked.wait()
            async with asyncio.timeout(5):  # the hub has 10 s
                assert (await node.rpc.cancel_task(waiting, purge=False)).task.status == "cancelled"
                again = (await node.rpc.pull("own/other")).task.task_id
                await node.until(again, lambda task: task.phase == "manifest")
                await node.pulls.close()
            left = [thread for thread in threading.enumerate() if thread.name.startswith("llmlb")]
            assert all(thread.daemon for thread in left), "the interpreter waits for none of them"


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
    from dataclasses import replace

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


def test_a_task_has_one_id_and_a_title_that_is_read_back() -> None:
    from llmlb.node.pull.names import parse_name

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
