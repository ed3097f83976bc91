"""Models of a cluster over the bus: registered from the hub, fetched by a real node, shown, deleted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmlb.bus.errors import (
    BusDown,
    Conflict,
    HubUnavailable,
    InvalidRequest,
    LlmlbError,
    ModelUnknown,
    NoCapableNode,
    NodeUnknown,
    NotFound,
)
from llmlb.bus.messages.hub import DeleteModel, DownloadModel, RegisterModel
from llmlb.router.hub.registry import AlreadyRegistered
from tests.conftest import MakeBus
from tests.support.hub_catalog import CatalogHub
from tests.support.model_hub import RouterRig, until
from tests.support.model_rig import DATA, FILE, NAME, REPO, ready
from tests.support.natsd import NatsServer
from tests.support.pulls import MIB, PullNode, eventually, gguf_bytes, pull_node


async def test_a_registered_model_is_on_the_node_and_a_deleted_one_is_gone(router: RouterRig, node: PullNode) -> None:
    node.hub.budget = 0
    shown = await router.register(REPO, registered_by="ann", display_name="A model", aliases=("short",))
    assert (shown.id, shown.name, shown.registered_by, shown.aliases) == (NAME, "A model", "ann", ("short",))
    assert (shown.quantization, shown.size_bytes, shown.engine) == ("Q4_K_M", MIB, "llama.cpp")
    assert shown.revision == node.hub.repos[REPO].head
    await until(lambda: router.states(NAME) == ["pending"])
    model = router.model(NAME)
    assert model is not None
    assert (model.status, model.lifecycle_status, model.nodes_ready, model.nodes_total) == (
        "downloading",
        "pending",
        0,
        1,
    )
    node.hub.release()
    await ready(router)
    model = router.model(NAME)
    assert model is not None
    assert (model.status, model.lifecycle_status, model.nodes_ready) == ("downloaded", "ready", 1)
    await until(lambda: [one.name for one in router.fleet.list_models()] == [REPO])
    gone = await router.hub.delete(DeleteModel(model="SHORT"))
    assert (gone.model, gone.nodes) == (NAME, (node.node_id,))
    await until(lambda: not router.fleet.list_models())
    assert router.model(NAME) is None
    assert not (node.models / REPO).exists()
    with pytest.raises(ModelUnknown):
        await router.fleet.check("short")


async def test_a_model_is_asked_by_its_registered_name_and_by_its_aliases(router: RouterRig, node: PullNode) -> None:
    await router.register(REPO, filename="sub/model-Q8_0.gguf", aliases=("short", "other"))
    name = f"{REPO}:Q8_0"
    await ready(router, name)
    for asked in (name, REPO, "short", "other"):
        await until(lambda asked=asked: router.fleet.loads.has(asked))
    (model,) = router.fleet.list_models()
    assert {"short", "other"} <= set(model.aliases)


async def test_a_chat_template_that_is_registered_stands_in_place_of_the_files(
    router: RouterRig, node: PullNode
) -> None:
    with pytest.raises(InvalidRequest, match="not a template"):
        await router.register(REPO, chat_template="{% for x in %}")
    await router.register(REPO, chat_template="{{ messages[0].content }}!")
    await ready(router)

    async def shown() -> bool:
        return (await node.rpc.show(REPO)).template == "{{ messages[0].content }}!"

    await eventually(shown)
    await router.hub.delete(DeleteModel(model=NAME))
    await node.rpc.pull(REPO)

    async def as_before() -> bool:
        try:
            return "!" not in (await node.rpc.show(REPO)).template[-2:]
        except ModelUnknown:
            return False

    await eventually(as_before)


async def test_nodes_fetch_from_the_manifest_with_the_hubs_metadata_away(router: RouterRig, node: PullNode) -> None:
    node.hub.budget = 0
    await router.register(REPO)
    node.hub.outage = "closes"  # type: ignore[attr-defined]
    node.hub.release()
    await ready(router)
    assert len(node.hub.requests("api", "/revision/")) == 1, "the router's, when it was registered"


async def test_what_is_registered_is_pinned_to_its_commit(router: RouterRig, node: PullNode) -> None:
    node.hub.budget = 0
    await router.register(REPO)
    node.hub.add(REPO, {FILE: gguf_bytes(2 * MIB, seed=9)})
    node.hub.release()
    await ready(router)
    assert (node.models / REPO / FILE).read_bytes() == DATA


async def test_the_second_who_registers_is_told_of_the_first(router: RouterRig) -> None:
    await router.register(REPO, registered_by="ann")
    with pytest.raises(AlreadyRegistered) as caught:
        await router.register(f"https://huggingface.co/{REPO}/blob/main/{FILE}", registered_by="bob")
    assert (caught.value.existing.registered_by, caught.value.existing.name) == ("ann", NAME)


async def test_of_two_administrators_at_once_one_is_first(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str, router: RouterRig
) -> None:
    other = await RouterRig().start(make_bus, url, hub, tmp_path / "other")
    try:
        hub.api_latency_s = 0.05
        done = await asyncio.gather(
            *(rig.register(REPO, registered_by=who) for rig, who in ((router, "ann"), (other, "bob"))),
            return_exceptions=True,
        )
        won = [each for each in done if not isinstance(each, BaseException)]
        lost = [each for each in done if isinstance(each, AlreadyRegistered)]
        assert (len(won), len(lost)) == (1, 1)
        assert lost[0].existing.registered_by == won[0].registered_by
        await until(lambda: all(rig.model(NAME) is not None for rig in (router, other)))
        assert {rig.model(NAME).registered_by for rig in (router, other)} == {won[0].registered_by}  # type: ignore[union-attr]
    finally:
        await other.stop()


async def test_variants_of_a_repository_are_models_of_their_own(router: RouterRig, node: PullNode) -> None:
    await router.register(f"{REPO}:q4_k_m")
    await router.register(f"{REPO}:Q8_0")
    await ready(router, NAME)
    await ready(router, f"{REPO}:Q8_0")
    await router.hub.delete(DeleteModel(model=NAME))
    await until(lambda: not (node.models / REPO / FILE).exists())
    await until(lambda: [one.name for one in router.fleet.list_models()] == [REPO])
    assert router.states(f"{REPO}:Q8_0") == ["ready"]


async def test_two_files_of_one_quantization_can_both_be_registered(router: RouterRig, node: PullNode) -> None:
    first, second = "a-Q4_0.gguf", "other-a-Q4_0.gguf"
    node.hub.add("own/two", {first: gguf_bytes(MIB, "Q4_0"), second: gguf_bytes(MIB + 64, "Q4_0", seed=5)})
    assert (await router.register("own/two", filename=first)).id == "own/two:Q4_0"
    assert (await router.register("own/two", filename=second)).id == "own/two:other-a-Q4_0"
    await ready(router, "own/two:Q4_0")
    await ready(router, "own/two:other-a-Q4_0")
    await router.hub.delete(DeleteModel(model="own/two:other-a-Q4_0"))
    await until(lambda: not (node.models / "own/two" / second).exists())
    assert (node.models / "own/two" / first).exists()


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ({"repo": "own/nothing"}, ModelUnknown, "has no model own/nothing"),
        ({"repo": f"{REPO}:Q2_K"}, NotFound, "it has Q4_K_M, Q8_0"),
        ({"repo": REPO, "filename": "gone.gguf"}, NotFound, FILE),
        ({"repo": REPO, "filename": "README.md"}, InvalidRequest, "no model file"),
        ({"repo": "own/empty"}, InvalidRequest, "no model inside"),
        ({"repo": "own/shards"}, InvalidRequest, "1 of the 2"),
        ({"repo": "no name"}, InvalidRequest, "bad model name"),
        ({"repo": f"{REPO}:Q8_0", "filename": FILE}, InvalidRequest, "not both"),
        ({"repo": REPO, "nodes": ("abcdef",)}, NodeUnknown, "abcdef"),
    ],
)
async def test_what_can_not_be_registered_is_refused_with_the_cause(
    router: RouterRig, hub: CatalogHub, what: dict[str, object], error: type[LlmlbError], text: str
) -> None:
    hub.add(REPO, {FILE: DATA, "x-Q8_0.gguf": DATA, "README.md": b"hello"})
    hub.add("own/empty", {"README.md": b"hello"})
    hub.add_paper("own/shards", {"a-Q4_0-00001-of-00002.gguf": 5})
    with pytest.raises(error, match=text):
        await router.hub.register(RegisterModel(**what))  # type: ignore[arg-type]
    assert not router.hub.registry.all()


async def test_an_alias_that_is_taken_is_refused(router: RouterRig) -> None:
    await router.register(NAME, aliases=("short",))
    with pytest.raises(Conflict, match="belongs to own/model:Q4_K_M"):
        await router.register(f"{REPO}:Q8_0", aliases=("Short",))


async def test_a_hub_that_is_away_is_said_to_be_unless_the_repository_is_known(
    router: RouterRig, hub: CatalogHub
) -> None:
    hub.outage = "500"
    with pytest.raises(HubUnavailable, match="try again"):
        await router.register(REPO)
    hub.outage = None
    router.hub._client._quiet_until = 0
    await router.register(NAME)
    await router.hub.delete(DeleteModel(model=NAME))
    hub.outage = "closes"
    done = await router.hub.register(RegisterModel(repo=REPO))
    assert "minutes ago" in done.warnings[0]
    assert done.record.manifest is not None


async def test_a_model_of_60_gb_is_warned_of_and_nothing_is_downloaded(router: RouterRig, node: PullNode) -> None:
    node.hub.add_paper("own/huge", {"huge-Q8_0.gguf": 60 * 10**9}, parameters=56 * 10**9)  # type: ignore[attr-defined]
    done = await router.hub.register(RegisterModel(repo="own/huge", nodes=(node.node_id[:8],)))
    assert "60.0 GB have to be downloaded by each node" in done.warnings[0]
    assert done.model.warnings == done.warnings
    # Whether it fits into this machine depends on the machine: the node refuses it before the first byte, or waits.
    assert not any(seen.where == "cdn" for seen in node.hub.seen)
    await router.hub.delete(DeleteModel(model="own/huge:Q8_0"))


async def test_a_model_without_an_engine_waits_for_its_conversion_and_is_not_distributed(
    router: RouterRig, node: PullNode
) -> None:
    files = {"model.safetensors": b"x" * 100, "config.json": b"{}", "tokenizer.json": b"{}"}
    node.hub.add("own/tensors", files)
    node.hub.add("own/pickled", {"pytorch_model.bin": b"x"})
    for repo in ("own/tensors", "own/pickled"):
        done = await router.hub.register(RegisterModel(repo=repo, aliases=(repo[4:],)))
        assert (done.model.lifecycle_status, done.model.status) == ("conversion_pending", "available")
        assert done.record.nodes == ()
        assert any("waits for conversion" in warning for warning in done.warnings)
        with pytest.raises(InvalidRequest, match="waits for its conversion"):
            await router.hub.download(DownloadModel(model=repo, all=True))
        with pytest.raises(NoCapableNode, match="waits for its conversion"):
            router.fleet.explain(repo)
    await router.register(REPO)
    await ready(router)
    assert [task.model for task in (await node.rpc.tasks()).tasks] == [NAME]


async def test_only_the_named_nodes_fetch_it(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str, router: RouterRig, node: PullNode
) -> None:
    async with pull_node(make_bus, tmp_path / "second", hub, url=url) as second:
        await until(lambda: router.fleet.members.state(second.node_id) == "online")
        await router.register(REPO, nodes=(second.node_id[:10],))
        await ready(router)
        assert node.names == []
        done = await router.hub.download(DownloadModel(model=NAME, nodes=(node.node_id[:10],)))
        assert [task.node_id for task in done.tasks] == [node.node_id]
        await until(lambda: router.states(NAME) == ["ready", "ready"])
        await second.stop()
        await second.bus.close()


async def test_a_router_that_begins_later_knows_the_same(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str, router: RouterRig, node: PullNode
) -> None:
    await router.register(REPO, aliases=("short",))
    await ready(router)
    later = await RouterRig().start(make_bus, url, hub, tmp_path / "later")
    try:
        await ready(later)
        assert [task.status for task in later.hub.board.all()] == ["completed"]
        await until(lambda: later.fleet.loads.has("short"))
    finally:
        await later.stop()


async def test_without_a_bus_the_list_is_there_and_nothing_can_be_changed(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub
) -> None:
    server = NatsServer(tmp_path / "own-nats").start()
    router = await RouterRig().start(make_bus, server.url, hub, tmp_path / "router")
    await router.register(REPO)
    server.kill()
    await until(lambda: not router.bus.connected)
    assert router.model(NAME) is not None
    for asked in (
        router.register(f"{REPO}:Q8_0"),
        router.hub.delete(DeleteModel(model=NAME)),
        router.hub.download(DownloadModel(model=NAME, all=True)),
    ):
        with pytest.raises(BusDown):
            await asked
    server.start()
    await until(lambda: router.bus.connected)

    async def works() -> bool:
        try:
            await router.register(f"{REPO}:Q8_0")
        except LlmlbError:
            return False
        return True

    await eventually(works)
    await router.stop()
    server.stop()


async def test_popularity_is_shown_when_known_and_never_waited_for(router: RouterRig, hub: CatalogHub) -> None:
    hub.add_paper("own/popular", {"popular-Q4_0.gguf": 5}, downloads=77, likes=3)
    await router.register("own/popular")
    hub.outage = "hangs"
    model = router.model("own/popular:Q4_0")
    assert model is not None
    assert model.downloads is None
    hub.outage = None
    hub.hanging.set()

    def known() -> bool:
        router.hub._popularity._tried.clear()
        router.hub._client._quiet_until = 0
        found = router.model("own/popular:Q4_0")
        return found is not None and (found.downloads, found.likes) == (77, 3)

    await until(known)


async def test_an_alias_that_names_another_model_on_a_node_is_refused(router: RouterRig, node: PullNode) -> None:
    await router.register(REPO)
    await ready(router)
    taken = next(iter((await node.rpc.list_models()).models[0].aliases))
    node.hub.add("own/other", {"other-Q4_0.gguf": gguf_bytes(MIB, "Q4_0", seed=3)})
    with pytest.raises(Conflict, match="is a name of own/model"):
        await router.register("own/other", aliases=(taken,))
