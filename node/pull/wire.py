"""The HTTP client of downloads: http.client with large reads, bounded windows, and connections that can be cut.

Of the standard library, as a body then goes from the socket into the bytes that are written without the interpreter's
lock and without copies: httpx copies it three times on its way through h11, with the lock held, and a whole download
took about twice as long (400 MB on loopback, 2 cores). A thread that waits for bytes is woken by shutting its socket
down.

The system's proxy settings are used: plain http to a proxy, through CONNECT for what is encrypted.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import select
import socket
import ssl
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

import llmlb

READ_BYTES = 256 * 1024
READ_S = 0.02
"""So much is read together if it comes within so short a time. A socket gives about 100 KiB at once, and what is done
for each piece, by several threads of one interpreter, costs more than its copy: 0.88 s of CPU or 0.80 for 400 MB."""
WINDOW_BYTES = 640 * 1024
"""What a connection may have under way: with 4 of them about 2.5 MiB are in the kernel, unseen, when we are killed, and
1 MiB in our hands. With 1 MiB and pieces of 512 KiB up to 8.6 MiB were lost on a loaded machine."""
MOST_REDIRECTS = 10
MOST_ENCODED = 2
"""Layers of Content-Encoding that are undone."""

_WINDOW_CLAMP: int | None = getattr(socket, "TCP_WINDOW_CLAMP", None)  # Linux only; elsewhere the system's default
_RMEM_MAX = Path("/proc/sys/net/core/rmem_max")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_SAFE = "!#$%&'()*+,/:;=?@[]~"
"""Stays as it is in an address; the rest is quoted. Source: RFC 3986, section 2."""


class NotHttp(Exception):
    """An address that is neither http nor https: nothing is read there."""


class Unreachable(Exception):
    """No connection: refused, no such host, no valid certificate, no answer in time."""


TROUBLE = (OSError, http.client.HTTPException, ValueError, zlib.error)
"""What a connection raises that breaks, or whose other side speaks something else than HTTP."""


@dataclass(frozen=True, slots=True)
class _Place:
    scheme: str
    host: str
    port: int


def _placed(url: str) -> tuple[_Place, SplitResult]:
    """Raises NotHttp, ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise NotHttp(parts.scheme)
    if not parts.hostname:
        raise ValueError("an address without a host")
    return _Place(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]), parts


@functools.cache
def _certificates() -> ssl.SSLContext:
    """One for all downloads: each takes 20 ms, and a MiB that Python does not see and so is in no hurry to free."""
    import httpx  # its choice of authorities: SSL_CERT_FILE and SSL_CERT_DIR, else certifi's

    return httpx.create_ssl_context()


def _proxy_for(place: _Place) -> SplitResult | None:
    """The proxy that the system's settings name for a place. Raises Unreachable for one that is not plain http."""
    proxies = urllib.request.getproxies()
    named = proxies.get(place.scheme) or proxies.get("all")
    if not named or urllib.request.proxy_bypass(f"{place.host}:{place.port}"):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise Unreachable(f"the proxy is at no http:// address but at {proxy.scheme}://")
    return proxy


def _proxy_headers(proxy: SplitResult | None) -> dict[str, str]:
    if proxy is None or not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


@dataclass(slots=True)
class _Connection:
    """One connection. ``ours``: a second descriptor of its socket. TLS moves the first into another object; this one
    stays and reaches the same connection. ``proxy``: one that is told the whole address; None behind a CONNECT too."""

    place: _Place
    client: http.client.HTTPConnection
    raw: socket.socket
    ours: socket.socket
    proxy: SplitResult | None = None

    def ask(self, parts: SplitResult, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Send a request, and read the head of its answer. Raises what TROUBLE names."""
        target = parts._replace(fragment="", **({} if self.proxy else {"scheme": "", "netloc": ""})).geturl()
        if self.proxy is None and not target.startswith("/"):
            target = f"/{target}"
        self.client.request("GET", quote(target, safe=_SAFE), headers={**headers, **_proxy_headers(self.proxy)})
        return self.client.getresponse()


@functools.cache
def _buffer_bytes() -> int:
    """The receive buffer that is asked for: ours, or all that the system grants (208 KiB on most). One that was set is
    not changed by the kernel any more; one that it chooses grows beyond every bound when the machine is busy, and up to
    17 MiB were lost to a kill -9 with two connections. 0: not known."""
    try:
        return min(WINDOW_BYTES, int(_RMEM_MAX.read_text()))
    except (OSError, ValueError):
        return 0


def connections() -> int:
    """How many one download has: more, where each may have less under way."""
    return 4 if _buffer_bytes() in (0, WINDOW_BYTES) else 8


def _clamp(connection: socket.socket) -> None:
    """Bound a connection's window. Again before each read: a kernel that makes the buffer of a fast reader larger sets
    the bound anew (Linux tcp_rcv_space_adjust; 15 MiB were lost to a kill -9 with the bound set once)."""
    if _WINDOW_CLAMP is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, _WINDOW_CLAMP, WINDOW_BYTES)


class Answer:
    """The answer to a request: its head, and its body by and by. ``headers`` have lower-case names.

    ``waits`` and ``goes_on`` are called when there is nothing to read, and when there is again.
    """

    def __init__(self, response: http.client.HTTPResponse, connection: socket.socket) -> None:
        self._response, self._socket = response, connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.waits: Callable[[], None] = _nothing
        self.goes_on: Callable[[], None] = _nothing

    def pieces(self) -> Iterator[memoryview | bytes]:
        """The body as it comes, of at most 256 KiB at once; a piece is good until the next one is taken.

        Ends early, without an error, when the connection does.
        """
        coded = [each.strip().lower() for each in self.headers.get("content-encoding", "").split(",")]
        coded = [each for each in coded if each not in ("", "identity")]
        if len(coded) > MOST_ENCODED:
            raise ValueError("too many layers of Content-Encoding")
        if not coded and self._response.length is not None and not self._response.chunked:
            return self._plain()
        raw = iter(self._read, b"")
        for each in reversed(coded):
            raw = _decoded(raw, each)
        return raw

    def _read(self) -> bytes:
        self.waits()
        data = self._response.read1(READ_BYTES)
        self.goes_on()
        return data

    def _plain(self) -> Iterator[memoryview]:
        """As ``read1`` does it, but into memory that is there already: new memory for each read costs as much as
        the read."""
        response, buffer = self._response, memoryview(bytearray(READ_BYTES))
        while left := response.length:
            have, until = 0, time.monotonic() + READ_S
            _clamp(self._socket)
            try:
                while have < min(READ_BYTES, left) and (self._is_more(until if have else 0.0) or not have):
                    count = response.fp.readinto1(buffer[have : min(left, READ_BYTES)])
                    self.goes_on()
                    if not count:
                        break
                    have += count
                    response.length = left - have
            except OSError:
                if have:
                    yield buffer[:have]
                raise
            if not have:
                return
            yield buffer[:have]

    def _is_more(self, until: float) -> bool:
        """True as soon as there is something to read, False when there is nothing by then."""
        if (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()) or self._poll.poll(0):
            return True
        self.waits()
        wait_s = until - time.monotonic()
        return wait_s > 0 and bool(self._poll.poll(wait_s * 1000))

    @property
    def is_whole(self) -> bool:
        """True when the body was read to its end, and the connection can take another request."""
        if self._response.length == 0:
            self._response.close()
        return self._response.isclosed() and not self._response.will_close


def _nothing() -> None:
    """Nobody wants to know."""


def _decoded(raw: Iterator[bytes], coding: str) -> Iterator[bytes]:
    """Undo gzip or deflate, though nobody asked for it, in pieces of at most 256 KiB: a bomb fills no memory."""
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"bytes in the coding {coding[:20]!r}")
    codec = zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
    for data in raw:
        left = data
        while left:
            if piece := codec.decompress(left, READ_BYTES):
                yield piece
            left = codec.unconsumed_tail
    if rest := codec.flush():
        yield rest


class Wire:
    """Requests of several threads at a time, over connections that are kept for the next, and cut by any thread."""

    def __init__(self, *, stall_s: float, connect_s: float) -> None:
        self._stall_s, self._connect_s = stall_s, connect_s
        self._open: set[socket.socket] = set()
        self._kept: list[_Connection] = []
        self._lock = threading.Lock()
        self._cut = False

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """Ask for an address, and go where it sends to. ``headers`` with credentials stay on the first host.

        Raises NotHttp, Unreachable, and what TROUBLE names; TimeoutError after ``stall_s`` without a byte.
        """
        headers = {"User-Agent": f"llmlb/{llmlb.__version__}", "Accept": "*/*", **headers}
        for _ in range(MOST_REDIRECTS + 1):
            place, parts = _placed(url)
            connection, response = self._asked(place, parts, headers)
            to = response.getheader("location")
            if response.status not in _REDIRECTS or to is None:
                break
            self._drop(connection)
            url = urljoin(url, to)
            if _placed(url)[0] != place:
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        else:
            raise http.client.HTTPException("sent from one address to the next without end")
        answer = Answer(response, connection.raw)
        try:
            yield answer
        finally:
            if answer.is_whole:
                with self._lock:
                    self._kept.append(connection)
            else:
                response.close()
                self._drop(connection)

    def _asked(
        self, place: _Place, parts: SplitResult, headers: Mapping[str, str]
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        while True:
            kept = self._take(place)
            connection = kept or self._connect(place)
            try:
                return connection, connection.ask(parts, headers)
            except BaseException as error:
                self._drop(connection)
                # One that was kept may have ended meanwhile: then another is taken. Silence is no such end.
                if kept is None or self._cut or isinstance(error, TimeoutError) or not isinstance(error, TROUBLE):
                    raise

    def _take(self, place: _Place) -> _Connection | None:
        with self._lock:
            found = next((each for each in self._kept if each.place == place), None)
            if found is not None:
                self._kept.remove(found)
        return found

    def _connect(self, place: _Place) -> _Connection:
        """Raises Unreachable."""
        proxy = _proxy_for(place)
        address = (place.host, place.port) if proxy is None else (str(proxy.hostname), proxy.port or 80)
        ours: socket.socket | None = None
        try:
            connection = socket.create_connection(address, self._connect_s)
            try:
                ours = self._opened(connection)
                if place.scheme == "https":
                    if proxy is not None:
                        _tunnel(connection, place, proxy)
                        proxy = None
                    connection = _certificates().wrap_socket(connection, server_hostname=place.host)
                connection.settimeout(self._stall_s)
            except BaseException:
                connection.close()
                raise
        except TROUBLE as error:
            self._forget(ours)
            raise Unreachable(str(error) or type(error).__name__) from error
        client = http.client.HTTPConnection(place.host, place.port)
        client.default_port, client.auto_open, client.sock = _PORTS[place.scheme], 0, connection
        return _Connection(place, client, connection, ours, proxy)

    def _opened(self, connection: socket.socket) -> socket.socket:
        """Take note of a connection, and bound its window."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if size := _buffer_bytes():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        _clamp(connection)
        ours = connection.dup()
        with self._lock:
            self._open.add(ours)
            cut = self._cut
        if cut:
            self.cut()
        return ours

    def _forget(self, ours: socket.socket | None) -> None:
        if ours is not None:
            with self._lock:
                self._open.discard(ours)
            ours.close()

    def _drop(self, connection: _Connection) -> None:
        connection.client.close()
        self._forget(connection.ours)

    def cut(self) -> None:
        """End every connection, now: who reads gets an error, or the end of the body. For good."""
        with self._lock:
            self._cut = True
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """When nobody reads any more."""
        self.cut()
        with self._lock:
            kept, self._kept = self._kept, []
        for connection in kept:
            self._drop(connection)


def _tunnel(connection: socket.socket, place: _Place, proxy: SplitResult) -> None:
    """Have a proxy connect us to a place. Raises what TROUBLE names."""
    host = f"[{place.host}]" if ":" in place.host else place.host.encode("idna").decode()
    lines = [f"CONNECT {host}:{place.port} HTTP/1.1", f"Host: {host}:{place.port}"]
    lines += [f"{name}: {value}" for name, value in _proxy_headers(proxy).items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    response = http.client.HTTPResponse(connection, method="CONNECT")
    try:
        response.begin()
        if response.status != 200:
            raise OSError(f"the proxy answers {response.status}")
    finally:
        response.close()
