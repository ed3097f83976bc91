"""Who may, over HTTP with hand-made records: every route and every caller, proxies, browsers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from llmlb.bus import subjects
from llmlb.bus.messages.identity import ApiKey
from llmlb.router.gateway import peers
from llmlb.router.gateway.permissions import PUBLIC, RULES, rule_of
from llmlb.router.identity.book import digest_of
from llmlb.router.identity.office import PERMISSIONS
from tests.unit.gateway.auth_rig import ADMIN, CHAT, NOW, STRANGE, VIEWER, Rig, Started, far, rig_of, verdict


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[tuple[Rig, httpx.AsyncClient]]:
    async with rig_of(tmp_path) as it:
        yield it


# Every route, every caller


@pytest.mark.parametrize("role", ["router", "node"])
def test_every_route_lets_in_exactly_who_may(role: str, tmp_path: Path) -> None:
    rig = Rig(role, tmp_path)
    routes = [(route, method) for route in rig.app.router.routes for method in route.methods]
    missing = [(method, route.path) for route, method in routes if (method, route.path) not in RULES]
    assert not missing, f"router/gateway/permissions.py has no rule for {missing}"
    far_away, here = "203.0.113.7", "127.0.0.1"
    before = [verdict(rig, route, method, here, {}) for route, method in routes]
    assert before == [200] * len(routes), "nobody exists: programs on this machine may everything"

    directory = rig.directory
    directory.put_users(ADMIN, VIEWER, STRANGE)
    keys = {permission: directory.put_key(permission) for permission in PERMISSIONS}
    none, expired = directory.put_key("a.newer.one"), directory.put_key(*PERMISSIONS, expires_at=NOW)
    revoked = directory.put_key(*PERMISSIONS)
    directory.put(subjects.api_key_key(digest_of(revoked)[:12]), None)
    sessions = {user.name: directory.put_session(user) for user in (ADMIN, VIEWER, STRANGE)}
    for route, method in routes:
        rule = RULES[method, route.path]
        open_to_all = rule is PUBLIC
        where = (method, route.path)
        for peer in (far_away, here):
            assert verdict(rig, route, method, peer, {}) == (200 if open_to_all else 401), where
            for bad in (expired, revoked, "sk_foreign", "x"):
                for sent in ({"Authorization": f"Bearer {bad}"}, {"x-api-key": bad}):
                    assert verdict(rig, route, method, peer, sent) == (200 if open_to_all else 401), (where, bad)
            for permission, key in keys.items():
                may = open_to_all or rule.anyone or rule.permission == permission
                for sent in ({"authorization": f"bearer {key}"}, {"x-api-key": key}):
                    assert verdict(rig, route, method, peer, sent) == (200 if may else 403), (where, permission)
            may = open_to_all or rule.anyone
            assert verdict(rig, route, method, peer, {"x-api-key": none}) == (200 if may else 403), where
            assert verdict(rig, route, method, peer, sessions["alice"]) == 200, where
            may = open_to_all or rule.viewer
            assert verdict(rig, route, method, peer, sessions["bob"]) == (200 if may else 403), where
            assert verdict(rig, route, method, peer, sessions["carol"]) == (200 if open_to_all else 403), where


def test_viewers_change_nothing() -> None:
    for (method, path), rule in RULES.items():
        if method != "GET" and rule.viewer and not rule.public and not rule.anyone:
            assert rule.permission == "inference", path


def test_a_route_without_a_rule_is_for_admins() -> None:
    rule = rule_of(cast(Any, SimpleNamespace(method="POST", route=SimpleNamespace(path="v0/new"))))
    assert (rule.permission, rule.viewer) == ("users", False)


# Peers


async def test_other_machines_never_come_in_without_credentials(
    gateway: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, client = gateway
    far(monkeypatch)
    for path in ("/v1/models", "/v0/nodes", "/nowhere"):
        answer = await client.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    key = rig.directory.put_key("models.read")
    for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.get("/nowhere", headers=headers)).status_code == 404
        assert (await client.post("/v1/chat/completions", headers=headers, json=CHAT)).status_code == 403
    assert rig.scripted.begun == []


async def test_nobody_is_let_in_while_it_is_unknown_whether_there_are_users(gateway: Started) -> None:
    rig, client = gateway
    rig.directory.mirror.loaded = False
    answer = await client.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "bus_unavailable")
    assert (await client.get("/health")).status_code == 200


async def test_a_record_that_cant_be_read_opens_nothing(gateway: Started) -> None:
    rig, client = gateway
    rig.directory._on_change(subjects.PEOPLE_KEY, b'{"users": 7}')
    assert (await client.get("/v1/models")).status_code == 401


async def test_a_key_whose_record_became_unreadable_is_no_key(gateway: Started) -> None:
    rig, _ = gateway
    text = rig.directory.put_key("inference")
    rig.directory._on_change(subjects.api_key_key(digest_of(text)[:12]), b"{}")
    assert rig.directory.key(text) is None


async def test_any_text_will_do_as_a_key_until_the_first_user_exists(gateway: Started) -> None:
    """Clients insist on sending one."""
    rig, client = gateway
    sent = {"Authorization": "Bearer none"}
    assert (await client.get("/v1/models", headers=sent)).status_code == 200
    limited = {"Authorization": f"Bearer {rig.directory.put_key('metrics')}"}
    assert (await client.get("/v1/models", headers=limited)).status_code == 403
    rig.directory.put_users(ADMIN)
    assert (await client.get("/v1/models", headers=sent)).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-For": ""},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "::1"},
        {"Via": "1.1 proxy"},
        {"X-Forwarded-Proto": "https"},
        {"X-Forwarded-Server": "www.example.com"},
        {"X-Forwarded-Host": "www.example.com"},
        {"X-Forwarded-Prefix": "/llm"},
        {"CF-Connecting-IP": "203.0.113.7"},
        {"Tailscale-User-Login": "alice@example.com"},
        {"X-Client-IP": "127.0.0.1"},
        {"X-Envoy-External-Address": "127.0.0.1"},
    ],
)
async def test_what_a_proxy_on_this_machine_passes_on_is_not_this_machines(
    gateway: Started, headers: dict[str, str]
) -> None:
    _, client = gateway
    assert (await client.get("/v1/models", headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        (None, 200),
        ("127.0.0.1", 200),
        ("::1", 200),
        ("203.0.113.7", 401),
        ("127.0.0.1, 203.0.113.7", 401),
        ("203.0.113.7, 127.0.0.1", 401),
        ("nonsense", 401),
        ("", 401),
        ("127.0.0.1, nonsense", 401),
    ],
)
async def test_a_trusted_proxy_is_believed_but_not_what_it_was_told(
    tmp_path: Path, forwarded: str | None, status: int
) -> None:
    async with rig_of(tmp_path, trusted_proxies="127.0.0.0/8,::1") as (_, client):
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
        assert (await client.get("/v1/models", headers=headers)).status_code == status


@pytest.mark.parametrize("header", ["X-Real-IP", "Forwarded", "Via"])
async def test_a_trusted_proxy_that_does_not_say_for_whom_it_asks_asks_for_a_stranger(
    tmp_path: Path, header: str
) -> None:
    async with rig_of(tmp_path, trusted_proxies="127.0.0.1") as (_, client):
        assert (await client.get("/v1/models", headers={header: "127.0.0.1"})).status_code == 401


@pytest.mark.parametrize("trusted", ["10.0.0.0/8", "fd00::/8"])
async def test_another_proxy_than_the_trusted_one_is_not_believed(tmp_path: Path, trusted: str) -> None:
    async with rig_of(tmp_path, trusted_proxies=trusted) as (_, client):
        assert (await client.get("/v1/models", headers={"X-Forwarded-For": "127.0.0.1"})).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "["},
    ],
)
async def test_a_page_of_another_site_makes_no_first_admin(gateway: Started, headers: dict[str, str]) -> None:
    rig, client = gateway
    body = {"name": "mallory", "password": "password", "role": "admin"}
    answer = await client.post("/v0/users", json=body, headers=headers)
    assert answer.status_code in (400, 403)
    assert not rig.directory.has_users


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:5", "x.localhost", "box", ""])
async def test_a_page_of_this_gateway_may(gateway: Started, host: str) -> None:
    _, client = gateway
    assert (await client.get("/v1/models", headers={"Host": host, "Origin": f"http://{host}"})).status_code == 200


def test_the_addresses_of_a_chain() -> None:
    assert peers._address("[fe80::1%eth0]") is not None
    assert peers._address("::ffff:127.0.0.1") == peers._address("127.0.0.1")
    assert peers._address("1.2.3.4:80") is None


@pytest.mark.parametrize(
    ("allowed", "headers", "status"),
    [
        ("", {"Origin": "http://evil.example"}, 403),
        ("", {"Origin": "null"}, 403),
        ("", {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ("", {"Origin": "http://llm.example", "Host": "llm.example"}, 201),
        ("", {"Origin": "http://llm.example", "Sec-Fetch-Site": "same-origin"}, 201),
        ("", {}, 201),
        ("http://chat.example", {"Origin": "http://chat.example"}, 201),
        ("http://chat.example", {"Origin": "http://evil.example"}, 403),
        ("*", {"Origin": "http://evil.example"}, 201),
    ],
)
async def test_with_auth_off_pages_of_other_sites_change_nothing(
    tmp_path: Path, allowed: str, headers: dict[str, str], status: int
) -> None:
    """A browser of the trusted network sends a page's POST as plain text, and asks nobody before."""
    async with rig_of(tmp_path, auth="off", cors_origins=allowed) as (rig, client):
        made: list[str] = []

        async def make_key(name: str, *_: object) -> tuple[str, ApiKey]:
            made.append(name)
            return "sk_x", ApiKey(key_id="k", digest="d", name=name, permissions=("users",), created_at=0)

        rig.office.make_key = make_key  # type: ignore[method-assign]
        body = b'{"name": "mallory", "permissions": ["users"]}'
        answer = await client.post("/v0/keys", content=body, headers={**headers, "Content-Type": "text/plain"})
        assert (answer.status_code, made) == (status, ["mallory"] if status == 201 else [])
        assert (await client.get("/v1/models", headers=headers)).status_code == 200, "which the page can't read"
