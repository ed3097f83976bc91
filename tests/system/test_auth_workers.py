"""Keys, their limits and logins with several gateway processes on one port: ``llmlb router serve --workers 3``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.forks import run
from tests.system.test_workers import listeners

PASSWORD = "correct horse"
WORKERS = 3
IN_A_ROW = 16
"""Each connection reaches any of the processes: so many answers in a row are the word of all of them."""
CHAT = {"model": "none/such", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Process]]:
    with cluster(tmp_path_factory.mktemp("workers")) as it:
        router = it.start("router", "serve", "--workers", str(WORKERS), home="router").wait_ready()
        wait_until(lambda: listeners(int(router.router_port or 0)) == WORKERS, 60, "all processes listen")
        assert make(it, router, "user", "add", "alice", "--admin", as_alice=False) == "added alice"
        wait_until(lambda: always(router, 401), 10, "all of them want credentials")
        yield it, router


def make(it: Cluster, router: Process, *command: str, as_alice: bool = True) -> str:
    """The output of a command that must work; as alice, once she exists."""
    more = ["--as", "alice"] if as_alice else []
    env = it.environ(it.root / "client", LLMLB_HOST=router.url)
    asked = ("router", *command, *more, "--password-stdin")
    done = run("llmlb", *asked, env=env, stdin=f"{PASSWORD}\n", timeout_s=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def key(rig: tuple[Cluster, Process], name: str, *more: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(make(*rig, "key", "create", name, "--json", *more))
    return made


def always(router: Process, status: int, **headers: str) -> bool:
    """Whether the models are answered with this status, whichever process one gets."""
    return all(
        httpx.get(f"{router.url}/v1/models", headers=headers, timeout=10).status_code == status for _ in range(IN_A_ROW)
    )


def test_a_key_works_at_every_process_at_once_and_revoked_at_none(rig: tuple[Cluster, Process]) -> None:
    router = rig[1]
    made = key(rig, "app")
    sent = {"x-api-key": made["key"]}
    wait_until(lambda: always(router, 200, **sent), 10, "all of them know the key")
    make(*rig, "key", "revoke", "app")
    wait_until(lambda: always(router, 401, **sent), 10, "none of them lets the key in")


def test_the_processes_share_the_limit_of_a_key(rig: tuple[Cluster, Process]) -> None:
    router, limit = rig[1], 6
    sent = {"x-api-key": key(rig, "limited", "--rpm", str(limit), "-p", "inference")["key"]}
    wait_until(lambda: always(router, 403, **sent), 10, "all of them know the key")
    began = time.monotonic()
    let_in = refused = 0

    def ask() -> bool:
        nonlocal let_in, refused
        answer = httpx.post(f"{router.url}/v1/chat/completions", json=CHAT, headers=sent, timeout=10)
        assert answer.status_code in (503, 429), "no node is there to answer"
        assert answer.headers["x-ratelimit-limit-requests"] == str(limit)
        let_in += answer.status_code == 503
        refused = refused + 1 if answer.status_code == 429 else 0
        return refused >= IN_A_ROW

    wait_until(ask, 60, "every process refuses")
    flowed_in = (time.monotonic() - began) * limit / 60
    # Beyond the limit: what came to one process while the news of the others was on its way.
    assert limit <= let_in <= limit + flowed_in + limit / 2 + 1
    assert let_in < WORKERS * limit


def test_a_login_holds_at_every_process_until_its_logout(rig: tuple[Cluster, Process]) -> None:
    router = rig[1]
    login = httpx.post(f"{router.url}/v0/auth/login", json={"name": "alice", "password": PASSWORD}, timeout=30)
    assert login.status_code == 200
    session = {"Cookie": f"llmlb_session={login.cookies['llmlb_session']}"}
    assert always(router, 200, **session), "at once: no process has to wait for the news"
    csrf = {"x-csrf-token": login.cookies["llmlb_csrf"]}
    assert httpx.post(f"{router.url}/v0/auth/logout", headers={**session, **csrf}).status_code == 200
    wait_until(lambda: always(router, 401, **session), 10, "the session is over at all of them")


def test_the_processes_count_wrong_passwords_together(rig: tuple[Cluster, Process]) -> None:
    router = rig[1]
    began = time.monotonic()
    looked_at = refused = 0
    while refused < IN_A_ROW and looked_at <= 5 * WORKERS:
        body = {"name": "mallory", "password": "guessed wrong"}
        status = httpx.post(f"{router.url}/v0/auth/login", json=body, timeout=30).status_code
        assert status in (401, 429)
        looked_at += status == 401
        refused = refused + 1 if status == 429 else 0
    # Five, and one each after 1, 2, 4 … s more; and one that met a process before the news of the last one did.
    allowed = 5 + int(math.log2(time.monotonic() - began + 1)) + 1
    assert 5 <= looked_at <= allowed
    assert allowed < 5 * WORKERS
