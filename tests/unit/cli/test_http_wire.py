"""HTTP on the standard library: connections that are kept, cut, short or endless."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmlb.bus.errors import LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli import http_wire
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import Unreachable
from tests.unit.cli.fake_gateway import Gateway, stream, text

Fake = tuple[type[Gateway], str]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def answer(body: bytes = b'{"x": 1}', more: bytes = b"") -> bytes:
    return OK + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


@contextmanager
def server(*connections: list[bytes], family: int = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[str]:
    """Takes one connection after the other; on each it gives an answer a request, and closes after the last one."""
    with socket.create_server((host, 0), family=socket.AddressFamily(family)) as listening:

        def serve() -> None:
            for answers in connections:
                made, _ = listening.accept()
                with made:
                    for each in answers:
                        made.recv(65536)
                        made.sendall(each)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        thread.join(5)


@contextmanager
def client(host: str) -> Iterator[GatewayClient]:
    made = GatewayClient(Settings.load({"LLMLB_HOST": host}), "node")
    yield made
    made.close()


def test_a_connection_is_kept_between_requests() -> None:
    with server([answer(b'{"x": 1}'), answer(b'{"x": 2}')]) as host, client(host) as gateway:
        assert [gateway.get("/", has="x")["x"] for _ in range(2)] == [1, 2]


def test_a_kept_connection_that_the_server_has_closed_is_opened_again_for_a_get() -> None:
    with server([answer(b'{"x": 1}')], [answer(b'{"x": 2}')]) as host, client(host) as gateway:
        assert [gateway.get("/", has="x")["x"] for _ in range(2)] == [1, 2]


def test_what_changes_something_is_sent_once_on_a_connection_of_its_own() -> None:
    with server([answer()], [answer(b'{"x": 2}')]) as host, client(host) as gateway:
        gateway.get("/", has="x")
        assert gateway.post("/", {}, has="x")["x"] == 2
    with server([b""]) as host, client(host) as gateway, pytest.raises(Unreachable, match="broke"):
        gateway.delete("/", has="x")


def test_a_server_that_closes_after_each_answer_is_asked_again() -> None:
    close = b"Connection: close\r\n"
    with server([answer(more=close)], [answer(b'{"x": 2}', close)]) as host, client(host) as gateway:
        assert [gateway.get("/", has="x")["x"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("bytes", "says"),
    [
        (b"", "broke"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "broke"),
        (OK + b"Content-Length: 100\r\n\r\n{}", "broke"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "broke"),
        (OK + b"X: " + b"y" * 70_000, "broke"),
    ],
)
def test_an_answer_that_is_cut_or_none_is_a_broken_connection(bytes: bytes, says: str) -> None:
    with server([bytes]) as host, client(host) as gateway, pytest.raises(Unreachable, match=says):
        gateway.get("/", has="x")


def test_a_chunked_answer_and_one_without_length_are_read_to_their_end() -> None:
    chunked = OK + b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"x"\r\n4\r\n: 1}\r\n0\r\n\r\n'
    for whole in (chunked, OK + b'\r\n{"x": 1}'):
        with server([whole]) as host, client(host) as gateway:
            assert gateway.get("/", has="x") == {"x": 1}


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "MAX_ANSWER_BYTES", 1000)
    endless = server([OK + b"\r\n" + b"x" * 2000])
    with endless as host, client(host) as gateway, pytest.raises(Unreachable, match="larger than 1000 bytes"):
        gateway.get("/", has="x")


def test_a_server_that_says_nothing_is_given_up_after_the_time_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with client(f"127.0.0.1:{port}") as gateway, pytest.raises(Unreachable, match="does not answer"):
            gateway.get("/", has="x", timeout_s=0.05)


def test_ipv6_works() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 on this machine")
    with server([answer()], family=socket.AF_INET6, host="::1") as host, client(host) as gateway:
        assert gateway.get("/", has="x") == {"x": 1}


@pytest.mark.parametrize("host", ["a" * 70 + ".invalid:1", "x..y:1"])
def test_a_name_that_no_host_can_have_is_unreachable(host: str) -> None:
    with client(host) as gateway, pytest.raises(Unreachable, match="cannot reach"):
        gateway.get("/", has="x")


def test_name_and_password_of_the_address_are_sent(fake: Fake) -> None:
    handler, address = fake
    seen: list[str | None] = []
    send: Callable[..., None] = handler._send
    handler._send = lambda self, *rest: (seen.append(self.headers["Authorization"]), send(self, *rest))[1]  # type: ignore[assignment,func-returns-value]
    with client(f"http://me:p%40ss@{address}") as gateway:
        gateway.get("/", has="model")
    assert seen == ["Basic " + b64encode(b"me:p@ss").decode()]


def test_the_path_of_the_address_goes_before_every_path(fake: Fake) -> None:
    handler, address = fake
    with client(f"http://{address}/llm") as gateway:
        gateway.get("/v0/ps", has="model")
    assert handler.asked == [("GET", "/llm/v0/ps", None)]


def test_a_proxy_of_the_environment_is_not_used(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with client(fake[1]) as gateway:
        assert gateway.get("/", has="model")


def test_what_the_reader_of_a_stream_raises_is_none_of_the_connections_errors(fake: Fake) -> None:
    handler, address = fake
    handler.posted = stream(text("a"))

    def read(gateway: GatewayClient) -> None:
        with gateway.stream("/", {}) as events:
            for _ in events:
                raise BrokenPipeError("standard output")

    with client(address) as gateway, pytest.raises(BrokenPipeError):
        read(gateway)


def test_a_chunked_stream_is_read_as_it_comes() -> None:
    first = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = head + b"%x\r\n" % len(first) + first + b"\r\n"
    with server([answer]) as host, client(host) as gateway, gateway.stream("/", {}) as events:
        assert next(events)["choices"][0]["delta"] == {"content": "a"}
        with pytest.raises(Unreachable, match="broke"):
            next(events)


def test_an_object_where_a_stream_was_asked_for_is_an_error(fake: Fake) -> None:
    handler, address = fake
    handler.body = json.dumps({"choices": []}).encode()
    with client(address) as gateway, pytest.raises(LlmlbError, match="no stream"), gateway.stream("/", {}):
        pass


def test_a_server_that_speaks_https_is_told_from_one_that_just_closes(tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"]
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run([*made, "1", "-subj", "/CN=x", "-out", cert, "-keyout", key], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def serve() -> None:
            for _ in range(2):  # the request, and the look at what it is
                taken, _ = listening.accept()
                try:
                    context.wrap_socket(taken, server_side=True).close()
                except OSError:
                    taken.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with client(f"http://127.0.0.1:{port}") as gateway, pytest.raises(Unreachable, match="HTTPS; write https://"):
            gateway.get("/", has="x")
        thread.join(5)


def test_a_certificate_nobody_vouches_for_is_refused_and_a_known_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run([*made, "1", *names, "-out", cert, "-keyout", key], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def serve() -> None:
            for _ in range(2):
                made, _ = listening.accept()
                try:
                    with context.wrap_socket(made, server_side=True) as secure:
                        secure.recv(65536)
                        secure.sendall(answer())
                except OSError:
                    made.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with client(f"https://localhost:{port}") as gateway:
            with pytest.raises(Unreachable, match="is not trusted: self-signed certificate") as refused:
                gateway.get("/", has="x")
            assert "Start it with" not in refused.value.message
            monkeypatch.setenv("SSL_CERT_FILE", str(cert))
            assert gateway.get("/", has="x") == {"x": 1}
        thread.join(5)
