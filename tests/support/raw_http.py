"""HTTP by hand: bytes out, answers in, for what no proper client sends."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 20.0


@dataclass
class Answer:
    """One answer, whole. ``interim``: how many "100 Continue" came before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: int = 0

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The one error body; fails when it is another."""
        error: dict[str, Any] = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert self.headers["x-request-id"]
        return error


class _Bytes(io.BytesIO):
    """What http.client takes for a socket."""

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        return self

    def close(self) -> None:
        """Not by who reads an answer: what comes after it is wanted too."""


class RawClient:
    """One connection."""

    def __init__(self, port: int, receive_bytes: int | None = None) -> None:
        """``receive_bytes``: what the kernel holds of what is not read."""
        self.sock = socket.socket()
        if receive_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(("127.0.0.1", port))
        self.got = b""

    def send(self, data: bytes) -> None:
        """All of it; what the server no longer takes is lost."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def end_sending(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def more(self) -> bool:
        """Wait for bytes. False: the server has ended the connection."""
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            return False
        self.got += data
        return bool(data)

    def until(self, text: bytes) -> bool:
        """Read until this has come. False: it never will."""
        while text not in self.got:
            if not self.more():
                return False
        return True

    def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        while self.more():
            pass
        return self.got

    def answer(self, method: str = "GET") -> Answer:
        """The next answer. Fails when the connection ends before it."""
        interim = 0
        while True:
            assert self.until(b"\r\n\r\n"), f"no answer, but {self.got[:200]!r}"
            if not self.got.startswith(b"HTTP/1.1 100 "):
                break
            interim += 1
            self.got = self.got.partition(b"\r\n\r\n")[2]
        while True:
            data = _Bytes(self.got)
            response = http.client.HTTPResponse(data, method=method)  # type: ignore[arg-type]
            response.begin()
            if response.length is None and not response.chunked and self.more():
                continue  # it ends with the connection
            try:
                body = response.read()
                break
            except http.client.IncompleteRead:
                assert self.more(), f"half an answer: {self.got[:200]!r}"
        self.got = self.got[data.tell() :]
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, body, interim)


@contextlib.contextmanager
def raw(port: int, receive_bytes: int | None = None) -> Iterator[RawClient]:
    """A connection that is closed at the end."""
    client = RawClient(port, receive_bytes)
    try:
        yield client
    finally:
        client.close()


def request(
    path: str, body: bytes | None = None, *fields: str, method: str | None = None, version: str = "1.1"
) -> bytes:
    """A proper request."""
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/{version}", "Host: 127.0.0.1", *fields]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")
