"""A router behind reverse proxies, which are processes: who asks, over what, and nothing held back or kept running."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.cluster import Process, wait_until
from tests.support.hostile import CHAT, chat, hostile_site, unharmed
from tests.support.proxy import proxy
from tests.support.raw_http import RawClient, raw, request
from tests.support.simcluster import SimCluster, running

STRANGER = "203.0.113.9"
SLOW = "simulated/slow"
LOAD_S = 6.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCluster]:
    """A router that trusts proxies of this machine."""
    with hostile_site(tmp_path_factory.mktemp("proxied"), LLMLB_TRUSTED_PROXIES="127.0.0.1/32") as it:
        yield it


@pytest.fixture
def router(site: SimCluster) -> Iterator[Process]:
    """Afterwards nothing runs, and a good request is answered."""
    yield site.routers[0]
    unharmed(site)


def models(port: int, **headers: str) -> int:
    """The status of a request through this proxy."""
    return httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers).status_code


def test_the_proxys_client_is_who_asks(router: Process) -> None:
    port = router.router_port or 0
    with proxy(port) as near, proxy(port, f"--client={STRANGER}") as far:
        assert models(near) == 200
        assert models(far) == 401
        assert models(far, **{"X-Forwarded-For": "127.0.0.1"}) == 401, "what the client says of itself counts nothing"
        with proxy(far) as chained:
            assert models(chained) == 401
        with proxy(near, f"--client={STRANGER}") as chained:
            assert models(chained) == 401


def test_a_page_is_compared_with_the_host_that_the_client_asked(router: Process) -> None:
    with proxy(router.router_port or 0) as port:
        assert models(port, Host="localhost:9", Origin="http://localhost:9") == 200
        assert models(port, Host="localhost:9", Origin="http://localhost:8") == 403
        assert models(port, Host="rebound.example.com") == 403


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_event_stream_is_not_held_back(router: Process, version: str) -> None:
    with proxy(router.router_port or 0, f"--http={version}") as port, raw(port) as client:
        client.send(request(CHAT, chat(200, stream=True)))
        assert client.until(b"data: ")
        assert b"[DONE]" not in client.got, "the first piece comes before the last is made"
        assert b"x-accel-buffering: no" in client.got.lower()
        assert client.until(b"data: [DONE]\n\n")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_the_proxy_frees_the_slot(site: SimCluster, router: Process, version: str, stream: bool) -> None:
    node = site.nodes[0]
    with proxy(router.router_port or 0, f"--http={version}") as port:
        client = RawClient(port)
        client.send(request(CHAT, chat(50_000, stream=stream)))
        wait_until(lambda: running(router).get(node.node_id) == 1, 10, "it runs")
        client.close()
        wait_until(lambda: running(router).get(node.node_id) == 0, 10, "its slot is free")


def test_a_proxy_that_gives_up_after_silence_does_not_while_a_model_loads(site: SimCluster, router: Process) -> None:
    site.start_node("lazy", "--lazy", f"--load-s={LOAD_S}", model=SLOW)
    wait_until(lambda: SLOW in httpx.get(f"{router.url}/v1/models").text, 20, "it is listed")
    with proxy(router.router_port or 0, "--silence-s=4") as port, raw(port) as client:
        began = time.monotonic()
        client.send(request(CHAT, chat(stream=True, model=SLOW)))
        assert client.until(b": loading")
        assert client.until(b"data: [DONE]\n\n")
        assert time.monotonic() - began > LOAD_S * 0.9, "it did take longer than the proxy's patience"


def test_cookies_are_secure_where_the_first_proxy_speaks_https(site: SimCluster) -> None:
    """The last test: from now on this router asks everybody who they are."""
    router = site.routers[0]
    login = {"name": "root", "password": "correct horse battery staple"}
    assert httpx.post(f"{router.url}/v0/users", json={**login, "role": "admin"}).status_code == 201
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(proxy(router.router_port or 0))
        https = stack.enter_context(proxy(router.router_port or 0, "--proto=https"))
        unsafe_first = stack.enter_context(proxy(https))
        safe_first = stack.enter_context(proxy(plain, "--proto=https"))
        for port, secure in ((plain, False), (https, True), (unsafe_first, False), (safe_first, True)):
            answer = httpx.post(f"http://127.0.0.1:{port}/v0/auth/login", content=json.dumps(login))
            assert answer.status_code == 200, answer.text
            cookies = answer.headers.get_list("set-cookie")
            assert len(cookies) == 2
            assert all(("secure" in cookie.lower()) is secure for cookie in cookies), cookies
    spoofed = httpx.post(
        f"{router.url}/v0/auth/login", json=login, headers={"X-Forwarded-For": STRANGER, "X-Forwarded-Proto": "https"}
    )
    assert spoofed.status_code == 200
