"""The HTTP client of downloads against servers that answer byte for byte as a test says."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmlb.node.pull import wire as wire_module
from llmlb.node.pull.wire import READ_BYTES, TROUBLE, NotHttp, Unreachable, Wire

BODY = bytes(range(256)) * 1000
Talk = Callable[[socket.socket, str], None]
"""Answers one request, given with its head. Closes the connection when it raises ConnectionError."""


class Server:
    """Answers each request of each connection by the next talk of a list, and the last one for good."""

    def __init__(self, *talks: Talk, context: ssl.SSLContext | None = None) -> None:
        self._talks, self._context = list(talks), context
        self.heads: list[str] = []
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"{'http' if context is None else 'https'}://{self.place}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self.talk(connection)

    def talk(self, connection: socket.socket) -> None:
        """All requests of a connection."""
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as lines:
            while head := b"".join(itertools.takewhile(lambda line: line != b"\r\n", lines)).decode():
                self.heads.append(head)
                (self._talks.pop(0) if len(self._talks) > 1 else self._talks[0])(connection, head)


def answer(body: bytes = BODY, *lines: str, status: str = "200 OK") -> Talk:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""])
    return lambda connection, _: connection.sendall(head.encode() + body)


def hang_up(connection: socket.socket, _: str) -> None:
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionError


def bytes_of(wire: Wire, url: str, **headers: str) -> bytes:
    with wire.get(url, headers) as got:
        return b"".join(bytes(piece) for piece in got.pieces())


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire(stall_s=5, connect_s=5)
    yield made
    made.close()


def test_a_connection_is_kept_for_the_next_request(wire: Wire) -> None:
    with Server(answer()) as server:
        assert [bytes_of(wire, f"{server.url}/{number}") for number in range(3)] == [BODY] * 3
        assert server.connections == 1


def test_a_kept_connection_that_has_ended_is_replaced_without_a_word(wire: Wire) -> None:
    with Server(answer(), hang_up, answer()) as server:
        assert bytes_of(wire, server.url) == BODY
        assert bytes_of(wire, server.url) == BODY
        assert server.connections == 2


def test_a_new_connection_that_ends_without_an_answer_is_trouble(wire: Wire) -> None:
    with Server(hang_up) as server, pytest.raises(TROUBLE):
        bytes_of(wire, server.url)


def test_a_body_that_was_not_read_to_its_end_leaves_no_connection_behind(wire: Wire) -> None:
    with Server(answer(b"x" * 4 * READ_BYTES), answer(b"whole")) as server:
        with wire.get(server.url, {}) as got:
            assert len(next(iter(got.pieces()))) <= READ_BYTES
        assert bytes_of(wire, server.url) == b"whole"
        assert server.connections == 2


def chunked(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(BODY), 50_000):
        piece = BODY[at : at + 50_000]
        connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
    connection.sendall(b"0\r\n\r\n")


def until_the_end(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)
    connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "talk", [answer(), chunked, until_the_end, answer(gzip.compress(BODY), "Content-Encoding: gzip")]
)
def test_a_body_is_read_however_its_end_is_told(wire: Wire, talk: Talk) -> None:
    with Server(talk) as server:
        assert [bytes_of(wire, server.url) for _ in range(2)] == [BODY] * 2


def test_a_body_that_is_cut_off_ends_early(wire: Wire) -> None:
    def cut(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        connection.shutdown(socket.SHUT_RDWR)

    with Server(cut) as server:
        assert bytes_of(wire, server.url) == b"half"


def test_what_came_before_a_silence_is_handed_out_first() -> None:
    def fall_silent(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

    wire = Wire(stall_s=0.2, connect_s=5)
    with Server(fall_silent) as server, wire.get(server.url, {}) as got:
        pieces = got.pieces()
        assert next(pieces) == b"half"
        with pytest.raises(TimeoutError):
            next(pieces)
    wire.close()


def test_what_came_is_handed_out_though_nothing_follows_for_long(wire: Wire) -> None:
    go_on = threading.Event()

    def pause(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        go_on.wait(20)
        connection.sendall(b"more")

    with Server(pause) as server, wire.get(server.url, {}) as got:
        pieces = got.pieces()
        assert next(pieces) == b"half"
        go_on.set()
        assert next(pieces) == b"more"
        assert list(pieces) == []


def test_a_bomb_comes_in_pieces(wire: Wire) -> None:
    bomb = gzip.compress(gzip.compress(bytes(16 * 1024 * 1024)))
    assert len(bomb) < 1000
    with Server(answer(bomb, "Content-Encoding: gzip, gzip")) as server, wire.get(server.url, {}) as got:
        sizes = [len(piece) for piece in got.pieces()]
    assert sum(sizes) == 16 * 1024 * 1024
    assert max(sizes) <= READ_BYTES


@pytest.mark.parametrize("coding", ["br", "gzip, gzip, gzip"])
def test_a_coding_that_is_not_known_is_trouble(wire: Wire, coding: str) -> None:
    with Server(answer(BODY, f"Content-Encoding: {coding}")) as server, pytest.raises(TROUBLE):
        bytes_of(wire, server.url)


def test_credentials_stay_on_their_host(wire: Wire) -> None:
    with Server(answer()) as other:
        sent = answer(b"", f"Location: {other.url}/there", status="302 Found")
        with Server(answer(b"", "Location: /again", status="307 Again"), sent) as first:
            assert bytes_of(wire, f"{first.url}/here", Authorization="Bearer secret") == BODY
    assert ["GET /here" in first.heads[0], "GET /again" in first.heads[1]] == [True, True]
    assert all("Bearer secret" in head for head in first.heads)
    assert "secret" not in other.heads[0]


def test_sent_on_without_end_is_trouble(wire: Wire) -> None:
    with Server(answer(b"", "Location: /more", status="302 Found")) as server, pytest.raises(TROUBLE):
        bytes_of(wire, server.url)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_nothing_is_read_where_it_is_not_http(wire: Wire, address: str) -> None:
    with pytest.raises(NotHttp):
        bytes_of(wire, address)
    with Server(answer(b"", f"Location: {address}", status="302 Found")) as server, pytest.raises(NotHttp):
        bytes_of(wire, server.url)


def test_an_address_is_sent_as_it_was_written_or_quoted(wire: Wire) -> None:
    with Server(answer()) as server:
        bytes_of(wire, f"{server.url}/a%20b/ü c?Signature=a~b%2F+c&d=(1)#not-sent")
        bytes_of(wire, f"{server.url}?only=query")
    assert server.heads[0].startswith("GET /a%20b/%C3%BC%20c?Signature=a~b%2F+c&d=(1) HTTP/1.1\r\n")
    assert server.heads[1].startswith("GET /?only=query HTTP/1.1\r\n")


def test_no_server_is_told_as_that(wire: Wire) -> None:
    with Server(answer()) as server:
        pass
    with pytest.raises(Unreachable):
        bytes_of(wire, server.url)


def test_a_cut_wakes_who_waits_for_a_head_or_a_handshake() -> None:
    for scheme in ("http", "https"):
        asked = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            wire = Wire(stall_s=60, connect_s=60)

            def cut(wire: Wire = wire, silent: socket.socket = silent, asked: threading.Event = asked) -> None:
                connection, _ = silent.accept()
                connection.recv(10)
                wire.cut()
                asked.wait(10)
                connection.close()

            thread = threading.Thread(target=cut, daemon=True)
            thread.start()
            began = time.monotonic()
            with pytest.raises((Unreachable, *TROUBLE)):
                bytes_of(wire, f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/")
            assert time.monotonic() - began < 30, "not the timeout"
            asked.set()
            thread.join(10)
            wire.close()


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], None]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def use(server: Server) -> None:
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{server.place}")
        monkeypatch.setenv("https_proxy", server.place)
        monkeypatch.setenv("no_proxy", "localhost")

    return use


def test_a_proxy_is_told_the_whole_address(wire: Wire, proxied: Callable[[Server], None]) -> None:
    with Server(answer()) as proxy, Server(answer(b"direct")) as near:
        proxied(proxy)
        assert bytes_of(wire, "http://hub.invalid:81/file?a=b") == BODY
        assert bytes_of(wire, near.url.replace("127.0.0.1", "localhost")) == b"direct"
    (head,) = proxy.heads
    assert head.startswith("GET http://hub.invalid:81/file?a=b HTTP/1.1\r\n")
    assert "Host: hub.invalid:81\r\n" in head
    assert "Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in head, "me:p@ss"


def test_a_proxy_that_refuses_or_is_of_another_kind_is_told(
    wire: Wire, proxied: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(answer(b"", status="407 Who are you")) as proxy:
        proxied(proxy)
        with pytest.raises(Unreachable, match="the proxy answers 407"):
            bytes_of(wire, "https://hub.invalid/file")
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(Unreachable, match="socks5"):
        bytes_of(wire, "https://hub.invalid/file")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server for hub.invalid and 127.0.0.1 speaks with, and who trusts it."""
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=DNS:hub.invalid,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=30)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=Path(certificate))


def test_what_is_encrypted_is_read_directly_and_through_a_proxy(
    wire: Wire,
    secured: tuple[ssl.SSLContext, ssl.SSLContext],
    proxied: Callable[[Server], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, trusting = secured
    with Server(answer(), context=context) as server:
        with pytest.raises(Unreachable, match="certificate"):
            bytes_of(wire, server.url)
        monkeypatch.setattr(wire_module, "_certificates", lambda: trusting)
        assert [bytes_of(wire, server.url) for _ in range(2)] == [BODY] * 2

        def connect(connection: socket.socket, _: str) -> None:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            server.talk(connection)

        with Server(connect) as proxy:
            proxied(proxy)
            before = server.connections
            assert [bytes_of(wire, "https://hub.invalid/file") for _ in range(2)] == [BODY] * 2
        assert server.connections == before, "the proxy handed it over"
    assert proxy.heads == ["CONNECT hub.invalid:443 HTTP/1.1\r\nHost: hub.invalid:443\r\n"]
    assert server.heads[-1].startswith("GET /file HTTP/1.1\r\nHost: hub.invalid\r\n")
