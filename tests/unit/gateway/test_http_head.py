"""Heads of requests: what is read, and what is refused because two programs could read it differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.router.gateway.http_head import HEADERS_MAX, TARGET_MAX, HttpRefused, chunk_size, parse_head, read_head

POST = "POST /v1/chat/completions HTTP/1.1\r\nHost: a"


def refused(text: str | bytes) -> int:
    raw = text if isinstance(text, bytes) else text.encode("latin-1")
    with pytest.raises(HttpRefused) as caught:
        parse_head(raw)
    assert caught.value.text
    return caught.value.status_code


def test_a_usual_head_is_read() -> None:
    head = parse_head(
        b"POST /v1/models/a%2Fb:Q4?x=1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 12\r\nX-A:  b c \t\r\nX-E:"
    )
    assert (head.method, head.target, head.version) == ("POST", "/v1/models/a%2Fb:Q4?x=1", "1.1")
    assert list(head.headers) == [("host", "a:1"), ("content-length", "12"), ("x-a", "b c"), ("x-e", "")]
    assert (head.length, head.keep_alive, head.expects) == (12, True, False)


def test_a_body_may_come_in_chunks_in_any_case() -> None:
    assert parse_head(f"{POST}\r\nTransfer-Encoding: Chunked".encode()).length is None


@pytest.mark.parametrize(
    "fields",
    [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Content-Length : 5",
        " Content-Length: 5",
        "X-A: b\r\n c",
        "X-A: b\nContent-Length: 5",
        "X-A: b\rContent-Length: 5",
        "X-A: b\x00",
        "X-A\x0b: b",
        "no colon",
        ": no name",
        "",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 5,5",
        "Content-Length: 0x5",
        "Content-Length: 5_0",
        "Content-Length: 5 5",
        "Content-Length: ",
        "Content-Length: \xb2",
        "Content-Length: " + "9" * 400,
        "Host: b",
    ],
)
def test_what_could_smuggle_a_request_is_refused(fields: str) -> None:
    assert refused(f"{POST}\r\n{fields}") == 400


def test_unicode_digits_are_no_length() -> None:
    assert refused(f"{POST}\r\nContent-Length: ".encode() + "٣".encode()) == 400


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity", "chunked, chunked", "xchunked", "chunked;a=b"])
def test_other_transfer_codings_are_not_understood(coding: str) -> None:
    assert refused(f"{POST}\r\nTransfer-Encoding: {coding}") == 501


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET", 400),
        ("GET /", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        (" GET / HTTP/1.1", 400),
        ("GET\t/ HTTP/1.1", 400),
        ("GET / http/1.1", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / HTTP/1.10", 400),
        ("G(T / HTTP/1.1", 400),
        ("GET /\x7f HTTP/1.1", 400),
        ("GET /\xe4 HTTP/1.1", 400),
        ("GET /#a HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("CONNECT a:443 HTTP/1.1", 400),
        ("GET http:///a HTTP/1.1", 400),
        ("GET http://a@b\\c/ HTTP/1.1", 400),
        ("GET /%00 HTTP/1.1", 400),
        (f"GET /{'a' * TARGET_MAX} HTTP/1.1", 414),
        (f"{'A' * 33} / HTTP/1.1", 400),
    ],
)
def test_first_lines_that_are_none(line: str, status: int) -> None:
    assert refused(f"{line}\r\nHost: a") == status


def test_a_host_is_needed_but_for_the_old_version() -> None:
    assert refused("GET / HTTP/1.1") == 400
    assert refused("GET / HTTP/1.1\r\nHost: a b") == 400
    assert refused("GET / HTTP/1.1\r\nHost: a/b") == 400
    assert list(parse_head(b"GET / HTTP/1.1\r\nHost:").headers) == [("host", "")]
    old = parse_head(b"GET / HTTP/1.0")
    assert (old.keep_alive, old.length) == (False, 0)
    assert parse_head(b"GET / HTTP/1.0\r\nConnection: Keep-Alive").keep_alive


def test_the_connection_header_is_a_list() -> None:
    assert not parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: TE, Close").keep_alive
    assert parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: TE, keep-alive").keep_alive
    assert parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade").keep_alive


def test_an_absolute_address_names_the_host() -> None:
    head = parse_head(b"GET HTTP://b:1/x?y HTTP/1.1\r\nHost: a")
    assert (head.target, list(head.headers)) == ("/x?y", [("host", "b:1")])
    assert parse_head(b"GET http://b HTTP/1.1").target == "/"
    assert parse_head(b"OPTIONS * HTTP/1.1\r\nHost: a").target == "*"


def test_expectations() -> None:
    assert parse_head(f"{POST}\r\nExpect: 100-Continue\r\nContent-Length: 5".encode()).expects
    assert not parse_head(f"{POST}\r\nExpect: 100-continue\r\nContent-Length: 0".encode()).expects
    assert not parse_head(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5").expects
    assert refused(f"{POST}\r\nExpect: the-spanish-inquisition") == 417


def test_too_many_headers() -> None:
    assert refused(POST + "\r\na: b" * HEADERS_MAX) == 431
    assert len(parse_head((POST + "\r\na: b" * (HEADERS_MAX - 1)).encode()).headers) == HEADERS_MAX


def test_sizes_of_chunks() -> None:
    assert chunk_size(b"ff") == 255
    assert chunk_size(b"0") == 0
    assert chunk_size(b'5;name="a b";c') == 5
    assert chunk_size(b"5 ;a") == 5
    for bad in (b"", b" 5", b"0x5", b"-5", b"+5", b"5_0", b"5 5", b"g", b"f" * 16, b"5;\x00", b"5\n"):
        with pytest.raises(HttpRefused):
            chunk_size(bad)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for data in (raw, b"GET / HTTP/1.1\r\n" + raw, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + raw):
        try:
            head = parse_head(data)
        except HttpRefused:
            continue
        assert head.target.isascii()
        # No line of it can be a second header.
        assert not any(bad in value for _, value in head.headers for bad in "\r\n\0")


@pytest.mark.parametrize("length", ["1", "7", "123456789012345678"])
@pytest.mark.parametrize("name", ["Content-Length", "content-length"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_head_that_is_known_is_read_like_one_that_is_not(name: str, length: str, place: int) -> None:
    lines = ["Host: a", "X-Y: content-length: 5"]
    lines.insert(place, f"{name}: {length}")
    raw = "\r\n".join(["POST /x HTTP/1.1", *lines]).encode()
    whole = parse_head(raw)
    for _ in range(2):
        head, found = read_head(raw)
        assert found == whole.length == int(length)
        rest = [field for field in head.headers if field[0] != "content-length"]
        assert rest == [field for field in whole.headers if field[0] != "content-length"]
        assert (head.method, head.target, head.version, head.keep_alive) == ("POST", "/x", "1.1", True)


def test_heads_that_differ_in_their_length_alone_are_one() -> None:
    heads = [read_head(f"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {n}".encode())[0] for n in (3, 4)]
    assert heads[0] is heads[1]
    assert read_head(b"POST /y HTTP/1.1\r\nHost: a\r\nContent-Length: 3")[0] is not heads[0]


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\ncontent-length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\n 6",
        "Content-Length: 5\n",
        "Content-Length: 5 6",
        "Content-Length : 5",
        "Content-Length: 05x",
        "X: y\r\n\r\nContent-Length: 5",
    ],
)
def test_the_short_way_to_a_known_head_lets_nothing_through(lines: str) -> None:
    for _ in range(2):
        with pytest.raises(HttpRefused):
            read_head(f"POST /x HTTP/1.1\r\nHost: a\r\n{lines}".encode())
