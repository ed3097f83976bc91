"""Many large bodies at once: what they take together has an end, and small ones do not notice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.cluster import Process, wait_until
from tests.support.hostile import CHAT, MODEL
from tests.support.raw_http import RawClient
from tests.support.simcluster import SimCluster, simcluster

MB = 1_000_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCluster]:
    """A router with room for one body of its largest size and a little more, and a node."""
    with simcluster(tmp_path_factory.mktemp("budget"), LLMLB_STALL_TIMEOUT="20s") as it:
        router = it.start_router(LLMLB_MAX_BODY="4MB", LLMLB_BODY_BUDGET="5MB")
        node = it.start_node("node", "--slots=8", "--tokens-per-s=200", model=MODEL)
        it.wait_ready(router, node)
        yield it
        assert "Traceback" not in router.output() + node.output()


def chat(size: int) -> bytes:
    """A body of so many bytes."""
    head = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": ""}], "max_tokens": 1}).encode()
    return head.replace(b'""', b'"' + b"x" * (size - len(head)) + b'"')


def ask(router: Process, data: bytes) -> httpx.Response:
    return httpx.post(f"{router.url}{CHAT}", content=data, timeout=30)


def begun(router: Process, data: bytes, *, chunked: bool = False) -> RawClient:
    """A client that has sent all of a body but its end."""
    client = RawClient(router.router_port or 0)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(data)}"
    client.send(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode())
    client.send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data[:-1])
    return client


def refused(answer: httpx.Response) -> bool:
    """Whether there was no room for it; else it was answered."""
    if answer.status_code == 200:
        return False
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "no_capacity"
    assert int(answer.headers["retry-after"]) >= 1
    return True


@pytest.mark.parametrize("chunked", [False, True])
def test_beyond_the_budget_a_large_body_is_told_to_come_again(site: SimCluster, chunked: bool) -> None:
    router, data = site.routers[0], chat(3 * MB)
    client = begun(router, data, chunked=chunked)
    wait_until(lambda: refused(ask(router, data)), 20, "the first one is counted")
    assert ask(router, chat(MB)).status_code == 200, "up to 1 MiB nothing is counted"
    assert ask(router, chat(1_900_000)).status_code == 200, "what still fits goes on"
    client.send(b"0\r\n\r\n" if chunked else data[-1:])
    assert client.answer().status == 200
    # Its connection is kept, and nothing of the body counts any more.
    wait_until(lambda: not refused(ask(router, data)), 20, "there is room again")
    client.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_who_goes_away_gives_its_room_back(site: SimCluster, chunked: bool) -> None:
    router, data = site.routers[0], chat(3 * MB)
    client = begun(router, data, chunked=chunked)
    wait_until(lambda: refused(ask(router, data)), 20, "it is counted")
    client.close()
    wait_until(lambda: not refused(ask(router, data)), 20, "there is room again")


def test_a_body_in_chunks_is_refused_when_it_grows_beyond_what_is_left(site: SimCluster) -> None:
    router, data = site.routers[0], chat(3 * MB)
    first = begun(router, data)
    wait_until(lambda: refused(ask(router, data)), 20, "it is counted")
    second = begun(router, data, chunked=True)
    assert second.answer().status == 503
    second.close()
    first.close()


def test_of_many_at_once_each_is_answered_or_told_to_come_again(site: SimCluster) -> None:
    router, data = site.routers[0], chat(2 * MB)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: refused(ask(router, data)), range(36)))
    assert not all(answers), "some got through"
    wait_until(lambda: not refused(ask(router, chat(4 * MB))), 20, "nothing counts any more")
