"""LLMLB_HOST names something else than a gateway: it is said what, and what to write."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from llmlb.cli.versions import mismatch
from tests.unit.cli.fake_gateway import MODEL, Gateway, run


@pytest.fixture
def says() -> Iterator[tuple[list[bytes], str]]:
    """A server that says the same to everybody, and its address."""
    words: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                with peer:
                    peer.settimeout(2)
                    try:
                        peer.recv(65536)
                        peer.sendall(words[0])
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield words, f"127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("word", "scheme", "code", "text"),
    [
        (b'INFO {"server_id":"x","version":"2.15.1"}\r\n', "", 2, "is a NATS server, the bus; LLMLB_HOST has to name"),
        (b"\x15\x03\x01\x00\x02\x02F", "", 2, "speaks HTTPS; write https://"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port", "", 1, "write https://"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>hello</html>", "", 1, "is not a llmlb gateway (status 200, no JSON object)"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n404 page not found", "", 1, "is LLMLB_HOST right?"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "https://", 2, "does not speak HTTPS; write http://"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "", 2, " broke: SSH-2.0-OpenSSH_9.2"),
    ],
)
def test_what_is_there_instead_is_said_in_one_line(
    says: tuple[list[bytes], str], word: bytes, scheme: str, code: int, text: str
) -> None:
    words, address = says
    words.append(word)
    done = run("node", "list", LLMLB_HOST=scheme + address)
    assert done.returncode == code
    assert done.stdout == ""
    assert text in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "says"),
    [("foo:bar", "the port is not a number"), ("not a host", "not an address"), ("http://", "not an address")],
)
def test_what_is_no_address_is_exit_1_and_says_so(host: str, says: str) -> None:
    done = run("node", "list", LLMLB_HOST=host)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: LLMLB_HOST='{host}' is wrong: {says}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("server", "warning"),
    [("0.1.9", None), ("0.2.0", "newer"), ("1.0.0", "newer"), ("0.0.9", "older"), ("main", None), ("", None)],
)
def test_a_server_of_another_version_is_told_of(server: str, warning: str | None) -> None:
    said = mismatch(server, "box:1", own="0.1.0")
    assert (said is None) if warning is None else (said is not None and f"is {warning} ({server})" in said)


def test_the_warning_is_a_line_on_standard_error_and_the_table_stays(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.bodies = {"/v0/models": {"models": [MODEL]}}
    handler.llmlb_version = "99.1.0"
    done = run("node", "list", LLMLB_HOST=address)
    assert done.returncode == 0
    assert done.stdout.startswith("NAME ")
    assert done.stderr.startswith(f"Warning: llmlb at {address} is newer (99.1.0)")
    assert done.stderr.count("\n") == 1
