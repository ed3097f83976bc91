"""Users and keys with real processes: made on the command line, in force on every gateway, revoked at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.forks import run

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Process, Process]]:
    """Two routers on one bus: no node is needed to say who may."""
    with cluster(tmp_path_factory.mktemp("auth")) as it:
        first = it.start("router", "serve", home="one").wait_ready()
        second = it.start("router", "serve", home="two").wait_ready()
        yield it, first, second


def cli(rig: tuple[Cluster, Process, Process], *command: str, stdin: str = "", **more: str) -> str:
    """The output of a command that must work."""
    it, first, _ = rig
    env = it.environ(it.root / "client", LLMLB_HOST=first.url, **more)
    done = run("llmlb", "router", *command, env=env, stdin=stdin, timeout_s=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def statuses(rig: tuple[Cluster, Process, Process], path: str, **headers: str) -> list[int]:
    return [httpx.get(process.url + path, headers=headers, timeout=10).status_code for process in rig[1:]]


def test_from_the_first_admin_to_a_revoked_key(rig: tuple[Cluster, Process, Process]) -> None:
    it, first, second = rig
    assert statuses(rig, "/v1/models") == [200, 200]
    assert cli(rig, "user", "add", "alice", "--admin", "--password-stdin", stdin=f"{PASSWORD}\n") == "added alice"
    wait_until(lambda: statuses(rig, "/v1/models") == [401, 401], 5, "both routers want credentials")
    assert statuses(rig, "/health") == statuses(rig, "/ready") == [200, 200]

    refused = it.cli("router", "nodes", host=first.url)
    assert refused.returncode == 1
    assert "API key or a login" in refused.stderr
    wrong = it.cli("router", "nodes", host=first.url.replace("127", "me:x@127"))
    assert wrong.returncode == 1

    as_alice = ["--as", "alice", "--password-stdin"]
    key = cli(rig, "key", "create", "app", "--expires", "3", *as_alice, stdin=f"{PASSWORD}\n")
    admin = cli(rig, "key", "create", "ops", "-p", "users", "-p", "nodes", *as_alice, stdin=f"{PASSWORD}\n")
    bearer = {"Authorization": f"Bearer {key}"}
    wait_until(lambda: statuses(rig, "/v1/models", **bearer) == [200, 200], 5, "both routers know the key")
    assert statuses(rig, "/v1/models", **{"x-api-key": key}) == [200, 200]
    assert statuses(rig, "/v0/nodes", **bearer) == [403, 403]
    assert "HOST" in cli(rig, "nodes", LLMLB_API_KEY=admin)
    listed = cli(rig, "key", "list", LLMLB_API_KEY=admin)
    assert "app" in listed
    assert "inference,models.read" in listed
    assert key not in listed
    assert "(app)" in cli(rig, "key", "revoke", "app", LLMLB_API_KEY=admin)
    wait_until(lambda: statuses(rig, "/v1/models", **bearer) == [401, 401], 5, "both routers refuse the key")

    for process in (first, second):
        output = process.output()
        assert not any(secret in output for secret in (key, admin, PASSWORD))


def test_a_revoked_key_is_refused_by_every_gateway_within_a_second(rig: tuple[Cluster, Process, Process]) -> None:
    """Goes on where the first test ends. From the answer to the revocation to the first refusal elsewhere."""
    _, first, second = rig
    as_alice = ["--as", "alice", "--password-stdin"]
    admin = cli(rig, "key", "create", "ops2", "-p", "users", *as_alice, stdin=f"{PASSWORD}\n")
    with (
        httpx.Client(base_url=first.url, headers={"x-api-key": admin}, timeout=10) as office,
        httpx.Client(base_url=second.url, timeout=10) as user,
    ):
        office.get("/v0/keys").raise_for_status()
        taken = []
        for number in range(5):
            made = office.post("/v0/keys", json={"name": f"short-{number}", "permissions": ["models.read"]}).json()
            sent = {"x-api-key": made["key"]}
            wait_until(lambda sent=sent: user.get("/v1/models", headers=sent).status_code == 200, 10, "it is known")
            office.delete(f"/v0/keys/{made['key_id']}").raise_for_status()
            revoked = time.monotonic()
            wait_until(lambda sent=sent: user.get("/v1/models", headers=sent).status_code == 401, 10, "it is refused")
            taken.append(time.monotonic() - revoked)
        assert max(taken) <= 1.0, taken


def test_users_over_http(rig: tuple[Cluster, Process, Process]) -> None:
    """Goes on where the first test ends: alice is an admin."""
    _, first, second = rig
    with httpx.Client(base_url=first.url, timeout=10) as browser:
        login = browser.post("/v0/auth/login", json={"name": "alice", "password": PASSWORD})
        assert login.status_code == 200
        assert set(browser.cookies) == {"llmlb_session", "llmlb_csrf"}
        csrf = {"X-CSRF-Token": browser.cookies["llmlb_csrf"]}
        assert login.json()["csrf_token"] == csrf["X-CSRF-Token"]
        assert browser.get("/v0/users").json()["users"][0]["name"] == "alice"
        body = {"role": "viewer"}
        assert browser.post("/v0/users/invitations", json=body).status_code == 403
        code = browser.post("/v0/users/invitations", json=body, headers=csrf).json()["code"]
        refused = browser.delete("/v0/users/alice", headers=csrf)
        assert refused.status_code == 409
        assert "last admin" in refused.json()["error"]["message"]
        assert browser.put("/v0/users/alice/role", json={"role": "viewer"}, headers=csrf).status_code == 409

        made = {"code": code, "name": "bob", "password": "battery staple"}
        wait_until(lambda: httpx.post(f"{second.url}/v0/auth/register", json=made).status_code == 201, 5, "registered")
        assert httpx.post(f"{first.url}/v0/auth/register", json={**made, "name": "eve"}).status_code == 400

        session = dict(browser.cookies)
        assert browser.post("/v0/auth/logout", headers=csrf).status_code == 200
        assert not browser.cookies
    for process in (first, second):
        cookie = {"Cookie": f"llmlb_session={session['llmlb_session']}"}
        wait_until(
            lambda process=process, cookie=cookie: (
                httpx.get(f"{process.url}/v0/auth/me", headers=cookie).status_code == 401
            ),
            5,
            "the session is over",
        )


def test_users_on_the_command_line(rig: tuple[Cluster, Process, Process]) -> None:
    """Goes on where the second test ends: bob is a viewer."""
    as_alice = ["--as", "alice", "--password-stdin"]
    listed = cli(rig, "user", "list", *as_alice, stdin=f"{PASSWORD}\n")
    assert [line.split()[:2] for line in listed.splitlines()] == [
        ["NAME", "ROLE"],
        ["alice", "admin"],
        ["bob", "viewer"],
    ]
    assert cli(rig, "user", "role", "bob", "admin", *as_alice, stdin=f"{PASSWORD}\n") == "bob is admin now"
    two = f"{PASSWORD}\nsomething else\n"
    assert cli(rig, "user", "passwd", "bob", *as_alice, stdin=two) == "changed the password of bob"
    as_bob = ["--as", "bob", "--password-stdin"]
    assert cli(rig, "user", "invite", "--expires", "1h", *as_bob, stdin="something else\n").startswith("invite-")
    assert cli(rig, "user", "remove", "bob", *as_alice, stdin=f"{PASSWORD}\n") == "removed bob"
    it, first, _ = rig
    for command, why in (
        (["user", "list", "--as", "alice"], "use --password-stdin"),
        (["user", "invite", "--expires", "soon"], "--expires"),
        (["key", "create", "x", "-p", "inference"], "API key or a login"),
    ):
        refused = it.cli("router", *command, host=first.url)
        assert refused.returncode == 1
        assert why in refused.stderr


def test_a_node_asks_for_keys_too_and_records_name_the_key(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        both = it.start("serve", home="one").wait_ready()
        rig = (it, both, both)
        wait_until(lambda: httpx.get(f"{both.node_url}/v1/models").json().get("data"), 30, "the node lists its model")
        model = httpx.get(f"{both.node_url}/v1/models").json()["data"][0]["id"]
        cli(rig, "user", "add", "alice", "--admin", "--password-stdin", stdin=f"{PASSWORD}\n")
        create = ["key", "create", "--as", "alice", "--password-stdin", "--json"]
        made = json.loads(cli(rig, *create, "app", "--rpm", "2", "-p", "inference", stdin=f"{PASSWORD}\n"))
        ops = json.loads(cli(rig, *create, "ops", "-p", "logs", "-p", "models.read", stdin=f"{PASSWORD}\n"))
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}

        def ask(url: str, **headers: str) -> httpx.Response:
            return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)

        for url in (both.url, both.node_url):
            wait_until(lambda url=url: ask(url).status_code == 401, 5, "no answer without credentials")
            bearer = {"Authorization": f"Bearer {made['key']}"}
            answer = ask(url, **bearer)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
        # The limit holds for both gateways together; each is told of the other's use within a moment.
        for url in (both.url, both.node_url):
            wait_until(lambda url=url: ask(url, **bearer).status_code == 429, 5, "two requests were all")
        listed = it.environ(tmp_path / "client", LLMLB_HOST=both.node_url, LLMLB_API_KEY=ops["key"])
        shown = subprocess.run(
            [sys.executable, "-m", "llmlb", "node", "ps"], env=listed, capture_output=True, text=True, timeout=60
        )
        assert shown.returncode == 0, shown.stderr
        found = wait_until(
            lambda: httpx.get(
                f"{both.url}/v0/requests", params={"key": made["key_id"]}, headers={"x-api-key": ops["key"]}
            ).json()["requests"],
            15,
            "the record of the request",
        )
        assert made["key"] not in str(found)
