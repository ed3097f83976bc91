"""Requests however they are cut and joined on their way: each answer is the one its request gets by itself."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.support.cluster import Process
from tests.support.hostile import CHAT, chat, hostile_site
from tests.support.raw_http import Answer, RawClient, raw, request

SIZES = (10, 4_000, 5_000, 30_000, 65_536, 100_000, 262_144, 300_000)
"""Around what is read apart, what is read at once, and where reading pauses."""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with hostile_site(tmp_path_factory.mktemp("reads"), LLMLB_MAX_BODY="1MB") as site:
        yield site.routers[0]


def prompt(size: int) -> bytes:
    """A chat body of about this size, with an answer of its own."""
    return chat(messages=[{"role": "user", "content": f"{size} " + "words \n" * (size // 8)}], seed=size)


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


@pytest.fixture(scope="module")
def expected(router: Process) -> dict[int, str]:
    """The answer to each size, asked for by itself with head and body apart."""
    found = {}
    for size in SIZES:
        with raw(router.router_port or 0) as client:
            body = prompt(size)
            whole = request(CHAT, body)
            client.send(whole[: -len(body)])
            time.sleep(0.02)
            client.send(body)
            found[size] = text_of(client.answer())
    assert len(set(found.values())) == len(SIZES)
    return found


def in_chunks(body: bytes, size: int) -> bytes:
    """The same request without a length."""
    head = request(CHAT, b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", SIZES)
def test_a_body_that_comes_with_its_head_is_the_same_as_one_that_comes_later(
    router: Process, expected: dict[int, str], size: int
) -> None:
    with raw(router.router_port or 0) as client:
        for _ in range(3):
            client.send(request(CHAT, prompt(size)))
            assert text_of(client.answer()) == expected[size]


@pytest.mark.parametrize("seed", range(6))
def test_requests_in_a_row_are_answered_in_their_order_wherever_they_are_cut(
    router: Process, expected: dict[int, str], seed: int
) -> None:
    draw = random.Random(seed)
    sizes = draw.choices(SIZES, k=8)
    sent = b""
    for at, size in enumerate(sizes):
        body = prompt(size)
        sent += in_chunks(body, draw.choice((50_000, 4_096))) if at % 3 == 2 else request(CHAT, body)
        sent += request("/v1/models") if at % 4 == 3 else b""
        sent += b"\r\n" if at % 5 == 4 else b""
    with raw(router.router_port or 0) as client:
        answers = send_in_pieces(client, sent, sorted(draw.randrange(len(sent)) for _ in range(12)), len(sizes) + 2)
    models = [answer for answer in answers if b'"object":"list"' in answer.body]
    assert len(models) == 2
    assert [text_of(answer) for answer in answers if answer not in models] == [expected[size] for size in sizes]


def send_in_pieces(client: RawClient, data: bytes, cuts: list[int], count: int) -> list[Answer]:
    """So many answers to what is sent, with pauses at the cuts, so that each piece is read by itself."""
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        client.send(data[begin:end])
        time.sleep(0.005)
    return [client.answer() for _ in range(count)]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(request(CHAT, b"x" * 1_000_001), 413, id="too large"),
        pytest.param(request(CHAT, b"[" * 20_000), 400, id="no JSON"),
        pytest.param(request("/v1/nowhere", b"x" * 20_000), 404, id="no such route"),
        pytest.param(request("/v1/models", b"x" * 20_000), 405, id="no such method"),
        pytest.param(request(CHAT, b"x" * 20_000).replace(b"Host: ", b"Hosts: "), 400, id="no host"),
    ],
)
def test_what_is_refused_takes_nothing_of_what_comes_behind_it(
    router: Process, expected: dict[int, str], data: bytes, status: int
) -> None:
    with raw(router.router_port or 0) as client:
        client.send(data + request(CHAT, prompt(5_000)))
        answer = client.answer()
        assert answer.status == status, answer
        if answer.headers["connection"] == "close":
            assert client.rest() == b""
        else:
            assert text_of(client.answer()) == expected[5_000]


def test_a_client_that_waits_for_the_go_on_gets_it_or_needs_none(router: Process, expected: dict[int, str]) -> None:
    body = prompt(30_000)
    whole = request(CHAT, body, "Expect: 100-continue")
    with raw(router.router_port or 0) as client:
        client.send(whole[: -len(body)])
        assert client.until(b"HTTP/1.1 100 ")
        client.send(body)
        assert text_of(client.answer()) == expected[30_000]
        client.send(whole)
        assert text_of(client.answer()) == expected[30_000]


def test_a_head_that_comes_byte_by_byte_is_a_head(router: Process) -> None:
    with raw(router.router_port or 0) as client:
        for byte in b"\r\n" + request("/v1/models", None, "X: " + "a" * 300):
            client.send(bytes((byte,)))
        assert client.answer().status == 200


@pytest.mark.parametrize("end", [b"\n", b"x\n", b"\n\r\n", b"\r\n\n"])
def test_a_line_feed_alone_is_refused_whenever_it_comes(router: Process, end: bytes) -> None:
    with raw(router.router_port or 0) as client:
        client.send(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n")
        time.sleep(0.02)
        client.send(b"X: y" + end)
        assert client.answer().error["message"] == "this is not HTTP/1.1"
        assert client.rest() == b""
