"""HTTP/1.1 for commands, on the standard library: its import takes 20 ms where httpx takes 110 ms.

No proxies out of the environment (gateways are on this machine or in its network), no redirects, and certificates are
checked against the system's.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote

from llmlb.cli.exit_codes import Unreachable
from llmlb.cli.foreign import greeting_trouble, tls_trouble

CONNECT_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of an answer that is read whole: a stranger's server may send without end."""
PIECE_BYTES = 64 * 1024
VERSION_HEADER = "X-Llmlb-Version"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer read to its end."""

    status: int
    type: str
    body: bytes
    cookies: tuple[str, ...] = ()
    """``name=value`` of each that the server set."""
    version: str | None = None
    """Of the llmlb that answered."""


class Wire:
    """One connection at a time to one server, opened when needed and kept open between requests. Not thread-safe.

    ``hint`` is added to what is said when nothing answers. Every method raises Unreachable.
    """

    def __init__(self, url: SplitResult, address: str, hint: str) -> None:
        self._url = url
        self._address = address
        self._hint = hint
        self.headers: dict[str, str] = {}
        """Sent with each request."""
        self.connect_timeout_s = CONNECT_TIMEOUT_S
        self._open: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def ask(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Answer:
        """One request and its whole answer. ``timeout_s`` is how long the server may be silent."""
        with self._errors():
            try:
                response = self._send(method, path, body, timeout_s)
                set_cookies = response.headers.get_all("Set-Cookie") or []
                cookies = tuple(each.partition(";")[0] for each in set_cookies)
                version = response.headers.get(VERSION_HEADER)
                return Answer(response.status, response.headers.get_content_type(), _whole(response), cookies, version)
            except BaseException:  # cleaned up after, and raised again
                self.close()  # what is left on it belongs to this request
                raise

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any], timeout_s: float) -> Iterator[Answer | Iterator[bytes]]:
        """POST; the pieces of an event stream as they come, or the whole answer when it is none of that.

        Leaving the context closes the connection, and with it the work behind it.
        """
        response: http.client.HTTPResponse | None = None
        try:
            with self._errors():
                response = self._send("POST", path, body, timeout_s)
                kind = response.headers.get_content_type()
                events = kind == "text/event-stream"
                whole = None if events else Answer(response.status, kind, _whole(response))
            yield whole or self._pieces(response)
        finally:
            if response is not None:
                response.close()
            self.close()

    def _pieces(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            # Not around the yield: what the reader of the pieces raises is none of our errors.
            with self._errors():
                piece = response.read1(PIECE_BYTES)
            if not piece:
                return
            yield piece

    def _send(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        if method != "GET":
            # A server closes an idle connection when it likes, and only a GET may be sent twice.
            self.close()
        reused = self._open is not None
        try:
            return self._exchange(method, path, data, timeout_s)
        except (http.client.RemoteDisconnected, ConnectionError):
            if not reused:
                raise
        self.close()
        return self._exchange(method, path, data, timeout_s)

    def _exchange(self, method: str, path: str, data: bytes | None, timeout_s: float) -> http.client.HTTPResponse:
        connection = self._connected()
        connection.sock.settimeout(timeout_s)
        headers = {"Accept": "application/json, text/event-stream", "User-Agent": "llmlb", **self.headers}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self._url.username is not None:
            pair = f"{unquote(self._url.username)}:{unquote(self._url.password or '')}"
            headers["Authorization"] = "Basic " + b64encode(pair.encode()).decode()
        connection.request(method, self._url.path + path, data, headers)
        return connection.getresponse()

    def _connected(self) -> http.client.HTTPConnection:
        # sock is None after an answer with "Connection: close".
        if self._open is not None and self._open.sock is not None:
            return self._open
        self.close()
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self.connect_timeout_s)
        try:
            connection.connect()
        except (OSError, ValueError) as error:  # ValueError: a name that no host can have
            connection.close()
            why = (
                tls_trouble(error, self._address) if isinstance(error, ssl.SSLError) else f"{_why(error)}. {self._hint}"
            )
            raise Unreachable(f"cannot reach llmlb at {self._address}: {why}") from error
        self._open = connection
        return connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """The only map from what the standard library raises to an error of ours."""
        try:
            yield
        except TimeoutError as error:
            raise Unreachable(f"llmlb at {self._address} does not answer") from error
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            strange = isinstance(error, http.client.BadStatusLine | ConnectionResetError)
            trouble = greeting_trouble(error, self._url, self._address) if strange else None
            text = (
                f"cannot talk to llmlb: {trouble}" if trouble else f"the connection to llmlb at {self._address} broke"
            )
            raise Unreachable(text if trouble else f"{text}: {_why(error)}") from error


def _whole(response: http.client.HTTPResponse) -> bytes:
    body = response.read(MAX_ANSWER_BYTES)
    if response.length:
        # read(limit), unlike read(), says nothing of a body that ended early.
        raise http.client.IncompleteRead(body, response.length)
    if len(body) < MAX_ANSWER_BYTES or not response.read(1):
        return body
    raise http.client.HTTPException(f"its answer is larger than {MAX_ANSWER_BYTES} bytes")


def _why(error: Exception) -> str:
    """What kept a connection from being made, in words: ``connection refused``, ``Name or service not known``."""
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    return "connection refused" if "refused" in text else text or type(error).__name__
