"""Every route of every gateway, over HTTP: keys that are not good, sessions that are over, changes without CSRF token.

The routes are the application's own, so that a new one is here by itself. Which permission opens which route is in
test_auth.py.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.bus import subjects
from llmlb.router.gateway import auth
from llmlb.router.gateway.permissions import PUBLIC, RULES
from llmlb.router.identity import directory as directory_module
from llmlb.router.identity import passwords, signed
from llmlb.router.identity.book import digest_of
from llmlb.router.identity.office import IDLE_S, PERMISSIONS
from tests.unit.gateway.auth_rig import ADMIN, NOW, SECRET, VIEWER, Known, Rig, far, rig_of, verdict

ROLES = ("router", "node")
NOTHING_GIVEN = "needs an API key or a login"


def routes(rig: Rig) -> Iterator[tuple[Any, str, str]]:
    """Each route with a method and a path that leads there."""
    for route in rig.app.router.routes:
        for method in sorted(route.methods):
            yield route, method, "/" + re.sub(r"<[^>]*>", "x", route.path)


def is_public(route: Any, method: str) -> bool:
    return RULES.get((method, route.path)) is PUBLIC


def bad_keys(directory: Known) -> dict[str, str]:
    """One of each kind."""
    revoked = directory.put_key(*PERMISSIONS)
    directory.put(subjects.api_key_key(digest_of(revoked)[:12]), None)
    good = directory.put_key(*PERMISSIONS)
    return {
        "expired": directory.put_key(*PERMISSIONS, expires_at=NOW),
        "revoked": revoked,
        "foreign": "sk_" + "f" * 43,
        "almost": good[:-1] + ("0" if good[-1] != "0" else "1"),
        "longer": good + "0",
        "digest": digest_of(good),
        "id": digest_of(good)[:12],
        "other kind": "sk-ant-" + "f" * 40,
    }


@pytest.mark.parametrize("role", ROLES)
async def test_a_key_that_is_not_good_opens_nothing_and_is_told_nothing(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig_of(tmp_path, role) as (rig, client):
        far(monkeypatch)
        rig.directory.put_users(ADMIN)
        bad = bad_keys(rig.directory)
        for route, method, path in routes(rig):
            if is_public(route, method) or method == "OPTIONS":
                continue
            said = set()
            for kind, key in bad.items():
                for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
                    answer = await client.request(method, path, headers=headers)
                    assert answer.status_code == 401, (method, path, kind)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    said.add(_without_id(answer))
            nothing = await client.request(method, path)
            assert nothing.status_code == 401
            assert len(said) == 1, "all of them are the same"
            if method != "HEAD":
                assert NOTHING_GIVEN in nothing.text
                kind = nothing.json()["error"]["type"]
                assert kind == "authentication_error", (path, kind)
                assert (nothing.json().get("type") == "error") is path.startswith("/v1/messages")
        assert rig.scripted.begun == []


def _without_id(answer: httpx.Response) -> str:
    return answer.text.replace(answer.headers["x-request-id"], "")


@pytest.mark.parametrize("role", ROLES)
async def test_a_change_with_a_cookie_needs_its_own_csrf_token_on_every_route(role: str, tmp_path: Path) -> None:
    async with rig_of(tmp_path, role) as (rig, client):
        rig.directory.put_users(ADMIN, VIEWER)
        session, other = rig.directory.put_session(ADMIN), rig.directory.put_session(VIEWER)
        cookie = {"Cookie": session["Cookie"]}
        own = session[auth.CSRF_HEADER]
        refused = 0
        for route, method, path in routes(rig):
            if method in auth.SAFE or is_public(route, method):
                continue
            for token in (None, "", other[auth.CSRF_HEADER], own[:-1], own + "A", own.lower(), "é"):
                headers = cookie if token is None else {**cookie, auth.CSRF_HEADER: token}
                answer = await client.request(method, path, headers=_encoded(headers))
                assert answer.status_code == 403, (method, path, token)
                refused += 1
            assert verdict(rig, route, method, "127.0.0.1", session) == 200, (method, path)
        assert refused > 30
        assert rig.scripted.begun == []
        assert [user.name for user in rig.directory.people.users] == ["alice", "bob"]


def _encoded(headers: dict[str, str]) -> Any:
    return {key: value.encode() for key, value in headers.items()}


def _sessions_over(directory: Known) -> dict[str, dict[str, str]]:
    """Headers of sessions that are not good, of each kind. Afterwards alice is an admin without sessions."""
    directory.put_users(ADMIN, VIEWER)
    forged = signed.Claims(user_id=ADMIN.user_id, session_id="s", epoch=0, issued_at=NOW, expires_at=NOW + IDLE_S)
    over = {
        "of a removed user": directory.put_session(ADMIN.model_copy(update={"user_id": "d" * 16})),
        "of another epoch": directory.put_session(ADMIN.model_copy(update={"epoch": 1})),
        "expired": directory.put_session(ADMIN, left_s=0),
        "ended": directory.put_session(ADMIN),
        "forged": {"Cookie": f"{auth.SESSION_COOKIE}={signed.sign(forged, b'x' * 32)}"},
        "nonsense": {"Cookie": f"{auth.SESSION_COOKIE}=x.y.z"},
        "empty": {"Cookie": f"{auth.SESSION_COOKIE}="},
    }
    directory.put(subjects.sessions_key(ADMIN.user_id), None)
    return over


@pytest.mark.parametrize("role", ROLES)
def test_a_session_that_is_over_opens_nothing(role: str, tmp_path: Path) -> None:
    rig = Rig(role, tmp_path)
    over = _sessions_over(rig.directory)
    for route, method, path in routes(rig):
        for kind, headers in over.items():
            for peer in ("203.0.113.7", "127.0.0.1"):
                wanted = 200 if is_public(route, method) else 401
                assert verdict(rig, route, method, peer, headers) == wanted, (method, path, kind)


# What takes how long


async def test_every_key_costs_the_same_work_whatever_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: one digest, one look-up by digest; nothing is ever compared with the key that was sent."""
    rig = Rig("router", tmp_path)
    far(monkeypatch)
    rig.directory.put_users(ADMIN)
    keys = {**bad_keys(rig.directory), "good": rig.directory.put_key(*PERMISSIONS)}
    work: list[str] = []

    class Kept(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            work.append(f"look up {len(key)}")
            return super().get(key, default)

    def digest(text: str) -> str:
        work.append("digest")
        return digest_of(text)

    monkeypatch.setattr(rig.directory, "_keys", Kept(rig.directory._keys))
    monkeypatch.setattr(directory_module, "digest_of", digest)
    assert all(re.fullmatch("[0-9a-f]{64}", kept) for kept in rig.directory._keys)
    route = next(route for route, _, path in routes(rig) if path == "/v1/models")
    done = {}
    for kind, key in keys.items():
        work.clear()
        status = verdict(rig, route, "GET", "203.0.113.7", {"x-api-key": key})
        assert status == (200 if kind == "good" else 401)
        done[kind] = tuple(work)
    assert set(done.values()) == {("digest", "look up 64")}, done


def test_tokens_are_compared_in_a_time_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: Any, other: Any) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    fake = type("hmac", (), {"compare_digest": staticmethod(compare), "digest": staticmethod(hmac.digest)})
    monkeypatch.setattr(signed, "hmac", fake)
    monkeypatch.setattr(auth, "hmac", fake)
    claims = signed.Claims(user_id="u", session_id="s", epoch=0, issued_at=0, expires_at=1)
    token = signed.sign(claims, SECRET)
    for changed in (token, token[:-1] + "A", token[:-20] + "A" * 20, "a.b.c"):
        signed.read(changed, SECRET)
    assert len(compared) == 4, "each one, and no shorter way for any"

    rig = Rig("router", tmp_path)
    rig.directory.put_users(ADMIN)
    headers = rig.directory.put_session(ADMIN)
    route = next(route for route, method, path in routes(rig) if (method, path) == ("POST", "/v1/messages"))
    compared.clear()
    for given in (headers[auth.CSRF_HEADER], "A" * len(headers[auth.CSRF_HEADER]), "", "x"):
        verdict(rig, route, "POST", "127.0.0.1", {**headers, auth.CSRF_HEADER: given})
    assert len(compared) == 2 * 4, "the cookie's and the header's"


async def test_a_name_that_nobody_has_costs_as_much_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[tuple[Any, ...]] = []
    scrypt = hashlib.scrypt

    def counted(password: bytes, **cost: Any) -> bytes:
        work.append((len(password), len(cost["salt"]), cost["n"], cost["r"], cost["p"], cost["dklen"]))
        return scrypt(password, **cost)

    monkeypatch.setattr(passwords.hashlib, "scrypt", counted)
    hasher = passwords.Hasher()
    try:
        known = passwords.make_hash("battery staple")
        work.clear()
        for hashed in (known, None, ""):
            assert not await hasher.matches("wrong password", hashed)
    finally:
        hasher.close()
    assert len(work) == 3
    assert len(set(work)) == 1, "the same salt length, cost and result length"
