"""Who may log a browser in: its own gateway's pages and those that the operator named, and no page of another site."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmlb.router.identity import passwords
from tests.unit.gateway.auth_rig import ADMIN, rig_of

PAGE = "https://chat.example.com"
LOGIN = {"name": "alice", "password": "wrong horse"}
REGISTER = {"code": "invite-x", "name": "bob", "password": "wrong horse"}
ROUTES = [("/v0/auth/login", LOGIN, 401), ("/v0/auth/register", REGISTER, 400)]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "LOG2_N", 4)


@pytest.mark.parametrize(("path", "body", "heard"), ROUTES)
async def test_a_page_of_another_site_can_log_nobody_in(
    path: str, body: dict[str, str], heard: int, tmp_path: Path
) -> None:
    async with rig_of(tmp_path) as (rig, client):
        rig.directory.put_users(ADMIN)
        own = f"http://{client.base_url.netloc.decode()}"
        for origin in ("https://evil.example.com", "null", own + "0", f"{own}.evil.com", "http://[", "//", PAGE):
            for more in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
                answer = await client.post(path, json=body, headers={"Origin": origin, **more})
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), origin
        assert not rig.office._logins._kinds[1]._seen, "nothing was counted"


@pytest.mark.parametrize(("path", "body", "heard"), ROUTES)
async def test_its_own_pages_programs_and_listed_origins_can(
    path: str, body: dict[str, str], heard: int, tmp_path: Path
) -> None:
    async with rig_of(tmp_path, cors_origins=PAGE) as (rig, client):
        rig.directory.put_users(ADMIN)
        host = client.base_url.netloc.decode()
        asking: list[dict[str, str]] = [
            {},
            {"Origin": f"http://{host}"},
            {"Origin": f"https://{host.upper()}", "Sec-Fetch-Site": "same-origin"},
            # Behind a proxy that says another host to us than the browser said to it.
            {"Origin": "https://llm.example.com", "Sec-Fetch-Site": "same-origin"},
        ]
        for headers in asking:
            answer = await client.post(path, json=body, headers=headers)
            assert answer.status_code == heard, headers
    async with rig_of(tmp_path, cors_origins=PAGE) as (rig, client):
        rig.directory.put_users(ADMIN)
        listed = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
        assert (await client.post(path, json=body, headers=listed)).status_code == heard


async def test_a_star_lists_nobody(tmp_path: Path) -> None:
    async with rig_of(tmp_path, cors_origins="*") as (rig, client):
        rig.directory.put_users(ADMIN)
        answer = await client.post("/v0/auth/login", json=LOGIN, headers={"Origin": PAGE})
        assert answer.status_code == 403


async def test_behind_a_trusted_proxy_the_host_that_the_browser_asked_counts(tmp_path: Path) -> None:
    async with rig_of(tmp_path, trusted_proxies="127.0.0.1/32") as (rig, client):
        rig.directory.put_users(ADMIN)
        forwarded = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": "llm.example.com"}
        for origin, status in (("https://llm.example.com", 401), ("https://evil.example.com", 403)):
            answer = await client.post("/v0/auth/login", json=LOGIN, headers={**forwarded, "Origin": origin})
            assert answer.status_code == status
