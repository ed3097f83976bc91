"""A plain answer is written past Sanic, and is the one that Sanic would have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.bus import subjects
from llmlb.bus.errors import QueueFull
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.gateway import short_way
from llmlb.router.identity.book import digest_of
from tests.unit.gateway.auth_rig import ADMIN, CHAT, NOW, rig_of
from tests.unit.gateway.scripted import Scripted, Step, delta, end, serving

IDS = ("x-request-id", "alt-svc")
"""Of Sanic's the second is empty."""


def script(request: InferRequest) -> list[Step]:
    return [delta("hello "), delta("there"), end()]


def asked(stream: bool) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}


async def answers(home: Path, stream: bool) -> list[httpx.Response]:
    """Two in a row over one connection."""
    async with serving(home, Scripted(script)) as (client, _):
        return [await client.post("/v1/chat/completions", json=asked(stream)) for _ in range(2)]


def shown(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in IDS and value}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_past_sanic_has_the_headers_and_the_events_of_one_through_it(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = await answers(tmp_path / "a", stream)
    monkeypatch.setattr(short_way, "_plain", lambda request: None)
    sanics = await answers(tmp_path / "b", stream)
    for mine, theirs in zip(ours, sanics, strict=True):
        assert (mine.status_code, theirs.status_code) == (200, 200)
        if not stream:
            assert mine.headers["content-length"] == str(len(mine.content))
        assert shown(mine) == shown(theirs)
        assert len(mine.headers["x-request-id"]) == 32
        assert mine.text.count("data: ") == theirs.text.count("data: ")
    assert ours[0].headers["x-request-id"] != ours[1].headers["x-request-id"]


async def test_an_error_on_the_short_way_is_answered_as_ever_and_the_connection_stays(tmp_path: Path) -> None:
    answers: list[list[Step]] = [[QueueFull("full")], [end()]]
    async with serving(tmp_path, Scripted(lambda request: answers.pop(0))) as (client, _):
        refused = await client.post("/v1/chat/completions", json=asked(False))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert (await client.post("/v1/chat/completions", json=asked(False))).status_code == 200


async def test_an_empty_body_and_a_query_are_answered_too(tmp_path: Path) -> None:
    async with serving(tmp_path, Scripted(script)) as (client, _):
        assert (await client.post("/v1/chat/completions")).status_code == 400
        assert (await client.post("/v1/chat/completions?a=b", json=asked(False))).status_code == 200
        assert (await client.get("/v1/chat/completions")).status_code == 405


# Who sent the same head before is not asked again, unless something changed


async def status_of(client: httpx.AsyncClient, key: str = "") -> int:
    """The same head each time, over the same connection."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code


async def test_a_key_that_is_revoked_or_changed_or_expires_is_refused_on_the_connection_that_it_opened(
    tmp_path: Path,
) -> None:
    async with rig_of(tmp_path) as (rig, client):
        rig.directory.put_users(ADMIN)
        key, other = rig.directory.put_key("inference"), rig.directory.put_key("inference", expires_at=NOW + 60)
        assert [await status_of(client, key) for _ in range(3)] == [200, 200, 200]
        rig.directory.put(subjects.api_key_key(digest_of(key)[:12]), None)
        assert await status_of(client, key) == 401
        assert [await status_of(client, other) for _ in range(2)] == [200, 200]
        rig.directory.now = NOW + 60
        assert await status_of(client, other) == 401


async def test_a_program_on_this_machine_is_asked_for_a_key_once_the_first_user_exists(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as (rig, client):
        assert [await status_of(client) for _ in range(2)] == [200, 200]
        rig.directory.put_users(ADMIN)
        assert await status_of(client) == 401


async def test_a_connection_shared_by_two_keys_takes_none_for_the_other(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as (rig, client):
        rig.directory.put_users(ADMIN)
        may, not_ = rig.directory.put_key("inference"), rig.directory.put_key("logs")
        assert [await status_of(client, key) for key in (may, not_, may, not_, may, "")] == [
            200,
            403,
            200,
            403,
            200,
            401,
        ]


async def test_the_last_use_of_a_key_is_noted_each_time(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as (rig, client):
        rig.directory.put_users(ADMIN)
        key = rig.directory.put_key("inference")
        for second in (1.0, 2.0):
            rig.directory.now = NOW + second
            assert await status_of(client, key) == 200
            assert rig.directory.list_keys()[0].last_used_at == NOW + second


async def test_the_limit_of_a_key_holds_on_one_connection_and_is_told(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as (rig, client):
        rig.directory.put_users(ADMIN)
        key = rig.directory.put_key("inference", requests_per_minute=2)
        head = {"Authorization": f"Bearer {key}"}
        found = [await client.post("/v1/chat/completions", json=CHAT, headers=head) for _ in range(3)]
        assert [one.status_code for one in found] == [200, 200, 429]
        assert [one.headers["x-ratelimit-remaining-requests"] for one in found] == ["1", "0", "0"]
