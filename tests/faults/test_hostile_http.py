"""Clients that mean harm, or know no better, against a real router: each gets a 4xx in the one error body, or is cut
off; none is seen in the log with a traceback; and a good request right after is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cluster import Process, wait_until
from tests.support.hostile import CHAT, chat, hostile_site, resident_bytes, unharmed
from tests.support.raw_http import Answer, RawClient, raw, request
from tests.support.simcluster import SimCluster, SimNode, running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCluster]:
    """A router without much patience."""
    with hostile_site(tmp_path_factory.mktemp("hostile"), LLMLB_MAX_BODY="1MB") as it:
        yield it


@pytest.fixture
def router(site: SimCluster) -> Iterator[Process]:
    """Afterwards nothing runs, and a good request is answered."""
    yield site.routers[0]
    unharmed(site)


def once(router: Process, data: bytes, method: str = "GET") -> Answer:
    with raw(router.router_port or 0) as client:
        client.send(data)
        return client.answer(method)


def refused(router: Process, data: bytes, status: int) -> dict[str, Any]:
    """The error; after it the connection is at its end, so that nothing sent behind is taken for a request."""
    with raw(router.router_port or 0) as client:
        client.send(data)
        answer = client.answer()
        assert answer.status == status, answer
        assert answer.headers["connection"] == "close"
        assert client.rest() == b"", "nothing else is answered"
        return answer.error


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n{} ", 400, id="two lengths"),
        pytest.param(
            HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="two framings"
        ),
        pytest.param(HEAD + b"Content-Length : 3\r\n\r\n{} ", 400, id="a blank before the colon"),
        pytest.param(HEAD + b"X-A: b\r\n Content-Length: 3\r\n\r\n{} ", 400, id="a folded line"),
        pytest.param(HEAD + b"X-A: b\nContent-Length: 3\r\n\r\n{} ", 400, id="a bare line feed"),
        pytest.param(HEAD + b"Content-Length: +3\r\n\r\n{} ", 400, id="a sign"),
        pytest.param(HEAD + "Content-Length: ٣\r\n\r\n{} ".encode(), 400, id="a digit of another script"),
        pytest.param(HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, id="another coding"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\n{} \r\n0\r\n\r\n", 400, id="a chunk in C"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n", 400, id="a chunk with no end"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n", 400, id="a trailer"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400, id="a negative chunk"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 300, 400, id="an endless chunk size"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;" + b"a" * 300, 400, id="an endless extension"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, id="two hosts"),
        pytest.param(b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, id="another version"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="an address that is not ASCII"),
        pytest.param(b"GET /v1/models/%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="NUL in an address"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, id="line feeds only"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2 by prior knowledge"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431, id="a huge header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 1000 + b"\r\n", 431, id="a thousand headers"),
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, id="a huge address"),
        pytest.param(HEAD + b"Expect: more\r\nContent-Length: 3\r\n\r\n{} ", 417, id="an unknown expectation"),
        pytest.param(HEAD + b"Content-Length: 1000001\r\n\r\n", 413, id="a body announced as too large"),
    ],
)
def test_what_is_not_proper_http_is_refused_and_the_connection_ends(router: Process, data: bytes, status: int) -> None:
    refused(router, data + SMUGGLED, status)


def test_a_body_in_chunks_is_refused_once_it_is_too_large_while_the_client_still_sends(router: Process) -> None:
    with raw(router.router_port or 0) as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(17):
            client.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert "1000000 bytes" in answer.error["message"]


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 90000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n55D4A80\r\n"]
)
def test_a_body_that_never_ends_is_refused_from_its_first_line(router: Process, framing: bytes) -> None:
    before = resident_bytes(router)
    with raw(router.router_port or 0) as client:
        client.send(HEAD + framing)
        assert client.answer().status == 413
        for _ in range(300):
            client.send(b" " * 65536)
        assert resident_bytes(router) - before < 10_000_000


def test_a_chunked_body_with_extensions_is_read(router: Process) -> None:
    body = chat()
    head = b"Transfer-Encoding: chunked\r\n\r\n"
    parts = b"".join(
        b"%x;a=b;c\r\n%b\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7)
    )
    assert once(router, HEAD + head + parts + b"0;last\r\n\r\n").status == 200


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "nested arrays"),
        (b'{"model":"m","messages":' + b'[{"content":' * 10_000, "nested messages"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested objects"),
        (b'{"model": "\xff\xfe", "messages": []}', "invalid UTF-8"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
        (b'{"model": "m", "model": "n"', "cut off"),
        (b"\x00" * 1000, "zeros"),
        (b"\xef\xbb\xbf{}", "a byte order mark"),
        (b'{"model": "m", "messages": [], "max_tokens": 1e999}', "infinity"),
        (b'{"n": ' + b"9" * 100_000 + b"}", "a huge number"),
    ],
)
@pytest.mark.parametrize(
    "path",
    [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages/count_tokens", "/v0/auth/login"],
)
def test_bodies_that_are_not_what_they_should_be(router: Process, path: str, body: bytes, why: str) -> None:
    answer = once(router, request(path, body))
    assert 400 <= answer.status < 500, (why, answer)
    assert answer.json()["error"]["message"]
    assert answer.headers["x-request-id"]


NAMES = ["a\r\nX-Evil: 1", "a\nb", "a\x00b", "ä\u2028\U0001f600", "../../etc/passwd", "a" * 256, "%0d%0aX-Evil: 1"]


@pytest.mark.parametrize("name", NAMES)
def test_no_header_is_made_of_a_models_name(router: Process, name: str) -> None:
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "x"}]}).encode()
    answer = once(router, request(CHAT, body))
    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize("given", ["a b", "a\tb", "\xe4", "a" * 129, "<script>", "a;b", ""])
def test_a_request_id_that_is_unfit_is_not_echoed(router: Process, given: str) -> None:
    echoed = once(router, request("/health", None, f"X-Request-Id: {given}")).headers["x-request-id"]
    assert len(echoed) == 32
    assert echoed.isalnum()


@pytest.mark.parametrize(
    "field",
    [
        "Authorization: Bearer \xff\xfe",
        "X-Api-Key: " + "sk_" * 3000,
        "Cookie: llmlb_session=\xff; =; ;;; a",
        "Cookie: llmlb_session=" + "a.b.c" * 1000,
        "X-CSRF-Token: \xff",
        "Accept-Encoding: ;q=\xff, gzip;q=nan, *;q=9",
        "Origin: \xff",
        "X-Forwarded-For: \xff, 1.2.3.4.5, [::",
        "Accept: \xff/\xff;q=x",
        "Content-Type: \xff",
    ],
)
def test_headers_with_odd_values_do_no_harm(router: Process, field: str) -> None:
    for path, body in (("/v1/models", None), ("/metrics", None), (CHAT, chat()), ("/v0/users", None)):
        answer = once(router, request(path, body, field))
        assert answer.status < 500
        assert answer.headers["x-request-id"]


PATHS = [
    "/v1/models/..%2f..%2fetc%2fpasswd",
    "/v1/models/%2e%2e/%2e%2e/etc/passwd",
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//etc/passwd",
    "///",
    "/v1//models",
    "/v1/models/%ff%fe",
    "/v1/models/%c0%ae%c0%ae/",
    "/v1/models/%0d%0aX-Evil:1",
    "/docs/../../etc/passwd",
    "/docs/%2e%2e%2fapp.py",
    "/v0/requests/..%2f..%2frouter.db",
    "/v0/requests/%",
    "/v0/nodes/%2e%2e",
    "/v0/requests?before=%ff~%ff",
    "/v0/requests?search=%ff&limit=%F0",
    "/v1/responses/..%2f..%2f",
    "/v1/models?" + "a=b&" * 1500,
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_routes(router: Process, path: str) -> None:
    answer = once(router, request(path))
    assert answer.status in ({200} if path.startswith(("/v1/models?", "/docs", "///")) else set()) | {400, 404, 405}
    assert b"root:" not in answer.body
    assert "x-evil" not in answer.headers
    if answer.status >= 400:
        assert answer.error


@pytest.mark.parametrize("method", ["FOO", "get", "TRACE", "PROPFIND", "A" * 32, "!#$%"])
def test_absurd_methods_are_not_allowed_and_the_answer_says_which_are(router: Process, method: str) -> None:
    answer = once(router, request("/v1/models", None, method=method))
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
    assert once(router, request("/nowhere", None, method=method)).status == 404


def test_requests_in_one_go_are_answered_in_their_order(router: Process) -> None:
    paths = ["/health", "/v1/models", "/nowhere", "/ready"] * 5
    data = b"".join(
        request(path, None, f"X-Request-Id: r{at}")
        + (request(CHAT, chat(), f"X-Request-Id: c{at}") if at % 4 == 0 else b"")
        for at, path in enumerate(paths)
    )
    with raw(router.router_port or 0) as client:
        client.send(data)
        for at, path in enumerate(paths):
            answer = client.answer()
            assert (answer.status, answer.headers["x-request-id"]) == (404 if path == "/nowhere" else 200, f"r{at}")
            if at % 4 == 0:
                assert client.answer().headers["x-request-id"] == f"c{at}"


def test_http_1_0_gets_its_answer_and_the_end_of_the_connection(router: Process) -> None:
    with raw(router.router_port or 0) as client:
        client.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert client.answer().json()["object"] == "list"
        assert not client.more()


def test_http_1_0_gets_a_stream_without_chunks(router: Process) -> None:
    with raw(router.router_port or 0) as client:
        client.send(request(CHAT, chat(stream=True), version="1.0"))
        head, _, body = client.rest().partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")


def test_who_expects_100_continue_gets_it_only_if_the_body_is_wanted(router: Process) -> None:
    body = chat()
    fields = f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with raw(router.router_port or 0) as client:
        client.send(HEAD + fields)
        assert client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(body)
        assert client.answer().status == 200
        client.send(b"POST /nowhere HTTP/1.1\r\nHost: a\r\n" + fields)
        answer = client.answer()
        assert (answer.status, answer.interim) == (404, 0)
        assert not client.more()


def test_half_a_close_still_gets_the_answer(router: Process) -> None:
    for data in (request("/v1/models"), request(CHAT, chat(100)), request(CHAT, chat(100, stream=True))):
        with raw(router.router_port or 0) as client:
            client.send(data)
            client.end_sending()
            answer = client.answer()
            assert answer.status == 200
            if b"data: " in answer.body:
                assert answer.body.endswith(b"data: [DONE]\n\n")
            assert client.rest() == b""


def test_half_a_request_and_half_a_close_end_at_once(router: Process) -> None:
    for data, status in ((request(CHAT, chat())[:-5], 400), (b"GET / HT", None), (b"", None)):
        with raw(router.router_port or 0) as client:
            client.send(data)
            client.end_sending()
            if status is None:
                assert client.rest() == b""
            else:
                assert client.answer().error["message"] == "the request body ended early"
                assert not client.more()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_whole_close_frees_the_slot(site: SimCluster, router: Process, version: str, stream: bool, how: str) -> None:
    node = site.nodes[0]
    clients = []
    for _ in range(2):
        client = RawClient(router.router_port or 0)
        client.send(request(CHAT, chat(50_000, stream=stream), version=version))
        clients.append(client)
    wait_until(lambda: running(router).get(node.node_id) == 2, 10, "both slots are taken")
    for client in clients:
        getattr(client, how)()
    wait_until(lambda: running(router).get(node.node_id) == 0, 10, "both slots are free")


def test_a_client_that_reads_nothing_is_cut_off_and_its_slot_is_free(site: SimCluster, router: Process) -> None:
    node = next((one for one in site.nodes if one.name == "fast"), None) or fast_node(site)
    before = resident_bytes(router)
    with raw(router.router_port or 0, receive_bytes=4096) as client:
        client.send(request(CHAT, chat(800_000, stream=True, model="simulated/fast")))
        assert client.until(b"data: ")
        wait_until(lambda: running(router).get(node.node_id) == 1, 10, "it runs")
        wait_until(lambda: running(router).get(node.node_id) == 0, 30, "it is cut off")
        assert resident_bytes(router) - before < 150_000_000
    assert "slow_client_closed" in router.output()


def fast_node(site: SimCluster) -> SimNode:
    node = site.start_node("fast", "--slots=1", "--tokens-per-s=20000", model="simulated/fast")
    site.wait_ready(site.routers[0], node)
    return node
