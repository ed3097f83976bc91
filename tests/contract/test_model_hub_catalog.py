"""The catalog against a real HTTP hub: paging, quantizations, what is kept, and what happens when the hub is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from llmlb.bus.errors import HubUnavailable, ModelUnknown
from llmlb.bus.hub_names import parse_name
from llmlb.bus.messages.hub import CatalogPage, SearchCatalog
from llmlb.router.hub import catalog as catalog_module
from llmlb.router.hub.cache import Cache
from llmlb.router.hub.catalog import Catalog
from llmlb.router.hub.client import HubClient
from llmlb.router.hub.fit import Room
from tests.support.hub_catalog import CatalogHub, catalog_hub

ROOMS = [Room("a" * 32, "small", 4 * 10**9), Room("b" * 32, "large", 64 * 10**9), Room("c" * 32, "silent")]


@pytest.fixture
def hub() -> Iterator[CatalogHub]:
    yield from catalog_hub()


class Rig:
    """A catalog as a router has it; :meth:`again` is the same after a restart."""

    def __init__(self, hub: CatalogHub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.begin()

    def begin(self, call_s: float = 2.0) -> None:
        self.client = HubClient(self.hub.url, call_s=call_s)
        self.cache = Cache(self.home / "hub-cache")
        self.catalog = Catalog(self.client, self.cache)

    async def close(self) -> None:
        await self.catalog.close()
        await self.client.close()

    async def again(self, call_s: float = 2.0) -> None:
        await self.close()
        self.begin(call_s)

    async def page(
        self, query: str = "", known: Callable[[str], bool] = lambda _: False, **what: object
    ) -> CatalogPage:
        return await self.catalog.page(SearchCatalog(query=query, **what), ROOMS, known)  # type: ignore[arg-type]

    def grow_old(self, seconds: float = 3600) -> None:
        """What is in memory was said so long ago."""
        for key, kept in list(self.cache._memory.items()):
            self.cache._memory[key] = type(kept)(kept.value, kept.at - seconds)


@pytest.fixture
async def rig(hub: CatalogHub, tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(hub, tmp_path)
    yield made
    await made.close()


async def test_a_page_has_fifty_models_with_their_variants_and_sizes(rig: Rig) -> None:
    rig.hub.add_many(120)
    page = await rig.page()
    assert (len(page.models), page.has_more, page.stale) == (50, True, False)
    first = page.models[0]
    assert first.id == "own/model-0000-GGUF"
    assert (first.downloads, first.likes, first.last_modified) == (1_000_000, 0, "2026-01-01T00:00:00.000Z")
    assert [one.quantization for one in first.variants] == ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
    variant = first.variants[2]
    assert variant.id == "own/model-0000-GGUF:Q4_K_M"
    assert variant.size_bytes == 4 * 10**9
    assert variant.url == f"{rig.hub.url}/own/model-0000-GGUF/resolve/main/model-0000-Q4_K_M.gguf"
    assert variant.fits_nodes == ("b" * 32, "c" * 32), "a node that tells nothing is given the benefit of the doubt"
    assert (variant.fits_count, page.nodes_total) == (2, 3)
    assert page.note is None


async def test_pages_follow_each_other_without_gap_or_repetition(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "BATCH", 7)
    rig.hub.add_many(23, variants=1)
    seen: list[str] = []
    for number in range(1, 4):
        page = await rig.page(page=number, limit=10)
        seen += [model.id for model in page.models]
    assert not page.has_more
    assert seen == [f"own/model-{number:04d}-GGUF" for number in range(23)]
    assert (await rig.page(page=9, limit=10)).models == ()


async def test_a_search_for_words_finds_those_models(rig: Rig) -> None:
    rig.hub.add_many(5)
    rig.hub.add_many(5, prefix="own/qwen")
    page = await rig.page("  QWEN 0003 ")
    assert [model.id for model in page.models] == ["own/qwen-0003-GGUF"]
    assert (await rig.page("nothing like it")).models == ()


async def test_only_one_quantization_is_shown_when_it_is_asked_for(rig: Rig) -> None:
    rig.hub.add_many(130, variants=1)
    rig.hub.add_paper("own/rare-GGUF", {"rare-Q5_K_M.gguf": 5, "rare-UD-Q4_K_XL.gguf": 4}, downloads=1)
    page = await rig.page(quant="q5_k_m")
    assert [(model.id, [one.quantization for one in model.variants]) for model in page.models] == [
        ("own/rare-GGUF", ["Q5_K_M"])
    ]
    assert not page.has_more
    assert rig.hub.asked("/revision/") == 1, "the sizes of what is not shown are not asked for"
    assert [one.quantization for one in (await rig.page(quant="Q4_K_XL")).models[0].variants] == ["UD-Q4_K_XL"]


async def test_shards_are_one_variant_and_projectors_are_none(rig: Rig) -> None:
    files = {f"big-Q8_0-0000{n}-of-00003.gguf": 10 * n for n in (1, 2, 3)} | {"mmproj-F16.gguf": 7, "big-Q4_0.gguf": 5}
    rig.hub.add_paper("own/big", files, gated=True)
    (model,) = (await rig.page()).models
    assert model.gated
    assert [(one.quantization, one.size_bytes, len(one.files)) for one in model.variants] == [
        ("Q4_0", 5, 1),
        ("Q8_0", 60, 3),
    ]


async def test_two_files_of_one_quantization_have_two_names(rig: Rig) -> None:
    rig.hub.add_paper("own/two", {"a-Q4_0.gguf": 5, "sub/other-a-Q4_0.gguf": 6})
    (model,) = (await rig.page()).models
    assert [one.id for one in model.variants] == ["own/two:Q4_0", "own/two:other-a-Q4_0"]


async def test_what_is_registered_is_marked(rig: Rig) -> None:
    rig.hub.add_many(1)
    (model,) = (await rig.page(known=lambda name: name.endswith(":Q8_0"))).models
    assert [one.quantization for one in model.variants if one.registered] == ["Q8_0"]


async def test_the_same_page_again_asks_the_hub_nothing(rig: Rig) -> None:
    rig.hub.add_many(60)
    first = await rig.page()
    before = rig.hub.asked()
    second = await rig.page()
    assert second.models == first.models
    assert rig.hub.asked() == before
    await rig.again()
    assert (await rig.page()).models == first.models
    assert rig.hub.asked() == before, "after a restart the disk has it"


async def test_many_who_ask_the_same_cost_the_hub_one_search(rig: Rig) -> None:
    rig.hub.add_many(10)
    rig.hub.api_latency_s = 0.05
    pages = await asyncio.gather(*(rig.page() for _ in range(20)))
    assert len({page.models for page in pages}) == 1
    assert rig.hub.asked() == 11


async def test_after_ten_minutes_the_search_is_made_anew_and_the_sizes_are_not(rig: Rig) -> None:
    rig.hub.add_many(3)
    await rig.page()
    rig.hub.add_paper("own/new", {"new-Q4_0.gguf": 5}, downloads=2_000_000)
    assert len((await rig.page()).models) == 3
    rig.grow_old()
    assert (await rig.page()).models[0].id == "own/new"
    assert rig.hub.asked("/revision/") == 4


@pytest.mark.parametrize("outage", ["closes", "500", "garbage"])
async def test_a_hub_that_is_away_is_answered_for_from_what_is_kept(rig: Rig, outage: str) -> None:
    rig.hub.add_many(3)
    before = await rig.page()
    rig.grow_old()
    rig.hub.outage = outage  # type: ignore[assignment]
    page = await rig.page()
    assert page.models == before.models
    assert page.stale
    assert 3600 <= page.age_s < 3700
    assert page.note
    with pytest.raises(HubUnavailable, match="try again"):
        await rig.page("something else")


async def test_a_hub_that_hangs_is_not_waited_for_when_something_is_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "AGAIN_ANSWER_S", 0.2)
    await rig.again(call_s=30)
    rig.hub.add_many(3)
    await rig.page()
    rig.grow_old()
    rig.hub.outage = "hangs"
    assert (await rig.page()).stale, "though the hub may take 30 s"


async def test_a_rate_limit_is_respected_and_told(rig: Rig) -> None:
    rig.hub.add_many(3)
    rig.hub.allowed = 0
    with pytest.raises(HubUnavailable, match="429") as caught:
        await rig.page()
    assert 25 <= caught.value.retry_after_s <= 30
    asked = rig.hub.asked()
    with pytest.raises(HubUnavailable, match="429"):
        await rig.page()
    assert rig.hub.asked() == asked, "nobody asks again before the time is over"


async def test_sizes_that_the_hub_refuses_are_missing_and_said_to_be(rig: Rig) -> None:
    rig.hub.add_many(5)
    rig.hub.allowed = 1
    page = await rig.page()
    assert len(page.models) == 5
    assert all(one.size_bytes is None and one.fits_count is None for model in page.models for one in model.variants)
    assert page.note == "the sizes of 5 models are not known yet"


async def test_a_disk_that_takes_nothing_costs_only_the_memory_of_a_restart(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "hub-cache").write_bytes(b"a file where the folder would be")
    rig.hub.add_many(2)
    assert len((await rig.page()).models) == 2
    before = rig.hub.asked()
    assert len((await rig.page()).models) == 2
    assert rig.hub.asked() == before


async def test_a_damaged_file_of_the_cache_is_as_none(rig: Rig, tmp_path: Path) -> None:
    rig.hub.add_many(2)
    await rig.page()
    for file in (tmp_path / "hub-cache").glob("*.json"):
        file.write_bytes(file.read_bytes()[:20])
    await rig.again()
    assert len((await rig.page()).models) == 2


async def test_the_token_goes_to_the_hub_and_nowhere_else(hub: CatalogHub, tmp_path: Path) -> None:
    hub.add_many(1)
    client = HubClient(hub.url, "hf_good")
    try:
        await client.search("", limit=10)
        assert hub.requests("api")[-1].authorization == "Bearer hf_good"
        await client._get(f"{hub.cdn_url}/elsewhere")
        assert [seen.authorization for seen in hub.requests("cdn")] == [None]
    finally:
        await client.close()


async def test_a_repository_that_is_not_there_is_no_outage(rig: Rig) -> None:
    with pytest.raises(ModelUnknown, match="own/nothing"):
        await rig.client.repository(parse_name("own/nothing"))
    rig.hub.add_many(1)
    assert (await rig.page()).models


async def test_the_time_until_the_hub_is_asked_again_passes(hub: CatalogHub) -> None:
    now = time.monotonic()
    client = HubClient(hub.url, clock=lambda: now)
    hub.allowed, hub.retry_after = 0, "7"
    with pytest.raises(HubUnavailable):
        await client.search("", limit=1)
    hub.allowed = None
    with pytest.raises(HubUnavailable):
        await client.search("", limit=1)
    now += 7.1
    await client.search("", limit=1)
    await client.close()
