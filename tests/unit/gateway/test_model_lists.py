"""GET /v1/models as the clients of both makers read it: the same address, and a header that tells them apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from llmlb.bus.messages.router import ClusterModel
from tests.unit.gateway.scripted import Scripted, serving

NAMES = [f"owner/model-{n}:Q4_K_M" for n in range(5)]
VERSION = {"anthropic-version": "2023-06-01"}


class Models(Scripted):
    def list_models(self) -> tuple[ClusterModel, ...]:
        return tuple(
            ClusterModel(
                name=name,
                aliases=(f"m{n}",),
                nodes=1,
                loaded=0,
                status="available",
                created_at=1e300 if n == 4 else 1_760_000_000.5,
            )
            for n, name in enumerate(NAMES)
        )


Rig = tuple[anthropic.AsyncAnthropic, openai.AsyncOpenAI, httpx.AsyncClient]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with serving(tmp_path, Models()) as (http, port):
        url = f"http://127.0.0.1:{port}"
        async with (
            anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as one,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as other,
        ):
            yield one, other, http


async def test_each_client_reads_the_list_in_its_own_shape(rig: Rig) -> None:
    one, other, _ = rig
    mine = (await one.models.list()).data
    assert [model.id for model in mine] == [model.id for model in (await other.models.list()).data] == NAMES
    assert mine[0].type == "model"
    assert mine[0].display_name == NAMES[0]
    assert mine[0].created_at == datetime.fromtimestamp(1_760_000_000, UTC)
    found = await one.models.retrieve("m1")
    assert (found.id, found.type) == ("m1", "model")
    assert found._request_id
    assert (await other.models.retrieve("m1")).object == "model"
    with pytest.raises(anthropic.NotFoundError) as caught:
        await one.models.retrieve("m9")
    assert caught.value.type == "not_found_error"
    assert [model.id async for model in one.beta.models.list(limit=2)] == NAMES


async def test_pages_follow_each_other_in_both_directions(rig: Rig) -> None:
    one, _, http = rig
    assert [model.id async for model in one.models.list(limit=2)] == NAMES

    async def page(**params: str) -> tuple[list[int], bool]:
        body = (await http.get("/v1/models", params=params, headers=VERSION)).json()
        places = [NAMES.index(model["id"]) for model in body["data"]]
        assert [body["first_id"], body["last_id"]] == (
            [NAMES[places[0]], NAMES[places[-1]]] if places else [None, None]
        )
        return places, body["has_more"]

    assert await page(limit="2") == ([0, 1], True)
    assert await page(limit="2", after_id=NAMES[3]) == ([4], False)
    assert await page(after_id=NAMES[4]) == ([], False)
    assert await page(limit="2", before_id=NAMES[3]) == ([1, 2], True)
    assert await page(limit="2", before_id=NAMES[2]) == ([0, 1], False)
    assert await page(limit="1", before_id=NAMES[4], after_id=NAMES[0]) == ([3], True)


async def test_a_page_that_there_is_not_is_refused_by_name(rig: Rig) -> None:
    _, _, http = rig
    wrong = [("limit", "0"), ("limit", "1001"), ("limit", "x"), ("after_id", "no"), ("before_id", "no")]
    for param, value in wrong:
        refused = await http.get("/v1/models", params={param: value}, headers=VERSION)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param
        plain = await http.get("/v1/models", params={param: value})
        assert plain.status_code == 200, "OpenAI's clients have no pages"
