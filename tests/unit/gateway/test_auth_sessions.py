"""Sessions and their cookies, and the limits of keys, over HTTP with hand-made records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.bus import subjects
from llmlb.bus.messages.identity import User
from llmlb.router.gateway import auth
from llmlb.router.identity.book import digest_of
from llmlb.router.identity.office import IDLE_S, RENEW_S, Login
from tests.unit.gateway.auth_rig import ADMIN, CHAT, NOW, VIEWER, Rig, Started, rig_of
from tests.unit.gateway.scripted import delta, end


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[tuple[Rig, httpx.AsyncClient]]:
    async with rig_of(tmp_path) as it:
        yield it


# Sessions


async def test_a_change_with_a_cookie_needs_the_csrf_token(gateway: Started) -> None:
    rig, client = gateway
    rig.directory.put_users(ADMIN)
    headers = rig.directory.put_session(ADMIN)
    cookie = {"Cookie": headers["Cookie"]}
    other = rig.directory.put_session(VIEWER)[auth.CSRF_HEADER]
    assert (await client.get("/v1/models", headers=cookie)).status_code == 200
    for bad in ({}, {auth.CSRF_HEADER: other}, {auth.CSRF_HEADER: ""}):
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={**cookie, **bad})
        assert answer.status_code == 403
    assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200


async def test_me_says_who_asks(gateway: Started) -> None:
    rig, client = gateway
    assert (await client.get("/v0/auth/me")).json()["kind"] == "local"
    rig.directory.put_users(ADMIN, VIEWER)
    headers = rig.directory.put_session(VIEWER)
    me = (await client.get("/v0/auth/me", headers=headers)).json()
    assert (me["name"], me["role"], me["csrf_token"]) == ("bob", "viewer", headers[auth.CSRF_HEADER])
    assert "users" not in me["permissions"]
    key = {"x-api-key": rig.directory.put_key("logs")}
    me = (await client.get("/v0/auth/me", headers=key)).json()
    assert (me["kind"], me["permissions"]) == ("key", ["logs"])


async def test_a_session_ends_with_its_user_its_epoch_its_record_and_its_time(gateway: Started) -> None:
    rig, client = gateway
    directory = rig.directory

    async def status() -> int:
        return (await client.get("/v1/models", headers=headers)).status_code

    for over in (
        lambda: directory.put_users(VIEWER),
        lambda: directory.put_users(ADMIN.model_copy(update={"epoch": 1})),
        lambda: directory.put(subjects.sessions_key(ADMIN.user_id), None),
        lambda: setattr(directory, "now", NOW + IDLE_S + 1),
    ):
        directory.now = NOW
        directory.put_users(ADMIN)
        headers = directory.put_session(ADMIN)
        assert await status() == 200
        over()
        assert await status() == 401


async def test_a_session_of_another_gateway_counts_before_its_record_arrives_but_not_for_long(
    gateway: Started,
) -> None:
    rig, client = gateway
    rig.directory.put_users(ADMIN)
    headers = rig.directory.put_session(ADMIN)
    rig.directory.put(subjects.sessions_key(ADMIN.user_id), None)
    for age, status in ((60.5, 200), (61.1, 401)):
        rig.directory.now = NOW - 60 + age - 60
        assert (await client.get("/v1/models", headers=headers)).status_code == status


async def test_a_session_in_use_is_moved_on(gateway: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, client = gateway
    rig.directory.put_users(ADMIN)
    renewed: list[str] = []

    async def renew(user: User, session_id: str) -> Login:
        renewed.append(user.name)
        return Login(user=user, token="t", csrf="c", expires_at=0)

    monkeypatch.setattr(rig.office, "renew", renew)
    headers = rig.directory.put_session(ADMIN)
    answer = await client.get("/v1/models", headers=headers)
    assert (renewed, answer.headers.get_list("set-cookie")) == ([], [])
    headers = rig.directory.put_session(ADMIN, left_s=IDLE_S - RENEW_S - 1)
    answer = await client.get("/v1/models", headers=headers)
    assert renewed == ["alice"]
    session, csrf = answer.headers.get_list("set-cookie")
    for cookie in (session, csrf):
        assert "SameSite=Strict" in cookie
        assert "Path=/" in cookie
        assert "Secure" not in cookie
    assert "HttpOnly" in session
    assert "HttpOnly" not in csrf


# Limits


async def test_a_key_has_its_requests_a_minute_and_is_told_what_is_left(gateway: Started) -> None:
    rig, client = gateway
    headers = {"x-api-key": rig.directory.put_key("inference", "models.read", requests_per_minute=2)}
    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert (
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers)
    ).status_code == 200
    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 31
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await client.get("/v1/models", headers=headers)).status_code == 200, "only inference counts"


async def test_a_key_has_its_tokens_a_minute(gateway: Started) -> None:
    rig, client = gateway
    headers = {"x-api-key": rig.directory.put_key("inference", tokens_per_minute=4)}
    assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 429
    assert "tokens a minute" in answer.json()["error"]["message"]


async def test_a_key_has_so_many_requests_at_a_time_and_choices_are_one(gateway: Started) -> None:
    rig, client = gateway
    text = rig.directory.put_key("inference", concurrency=1)
    headers = {"x-api-key": text}
    go = asyncio.Event()
    rig.scripted.script = lambda request: [go, delta("a"), end()]
    first = asyncio.ensure_future(client.post("/v1/chat/completions", json={**CHAT, "n": 3}, headers=headers))
    async with asyncio.timeout(5):
        while not rig.scripted.begun:
            await asyncio.sleep(0.01)
    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    go.set()
    assert (await first).status_code == 200
    meter = rig.directory.meter(digest_of(text)[:12])
    assert meter is not None
    async with asyncio.timeout(5):
        while meter.running:
            await asyncio.sleep(0.01)
    assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200


async def test_records_name_the_key_and_not_its_text(gateway: Started) -> None:
    rig, client = gateway
    calls: list[Any] = []
    stream = rig.scripted.stream
    rig.scripted.stream = lambda request, call=None: (calls.append(call), stream(request, call))[1]  # type: ignore[method-assign]
    text = rig.directory.put_key("inference")
    await client.post("/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {text}"})
    assert [call.key for call in calls] == [digest_of(text)[:12]]
