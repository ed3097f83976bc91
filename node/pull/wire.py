"""The HTTP client of downloads: httpx with large reads, bounded windows, and connections that can be cut.

httpcore reads 64 KiB at a time, which costs more than half of a core at 300 MB/s; with more the same file came at
700 MB/s (measured on loopback, 2 cores). A thread that waits for bytes is woken by shutting its socket down.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import httpx

READ_BYTES = 512 * 1024
WINDOW_BYTES = 1024 * 1024
"""What a connection may have under way: with 4 of them at most 4 MiB are in the kernel, unseen, when we are killed."""

_WINDOW_CLAMP: int | None = getattr(socket, "TCP_WINDOW_CLAMP", None)  # Linux only; elsewhere the system's default


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, on_close: Callable[[], None]) -> None:
        self._inner, self._on_close = inner, on_close

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max(max_bytes, READ_BYTES), timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._on_close()
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._on_close)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend, wire: Wire) -> None:
        self._inner, self._wire = inner, wire

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self._wire.opened(stream))


@functools.cache
def _certificates() -> ssl.SSLContext:
    """One for all downloads: each takes 20 ms, and a MiB that Python does not see and so is in no hurry to free."""
    return httpx.create_ssl_context()


class Wire:
    """A client whose connections can be cut from another thread. Proxy settings of the system are used."""

    def __init__(self, *, connections: int, stall_s: float, connect_s: float) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False
        self.client = httpx.Client(
            timeout=httpx.Timeout(connect_s, read=stall_s),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=False,
            verify=_certificates(),
        )
        self.tuned = self._tune()

    def _tune(self) -> bool:
        """Put our backend under httpx. Its pools have no public way in; without it all works, only slower."""
        pools = [
            getattr(transport, "_pool", None)
            for transport in (self.client._transport, *self.client._mounts.values())
            if transport is not None
        ]
        for pool in pools:
            inner = getattr(pool, "_network_backend", None)
            if isinstance(inner, httpcore.NetworkBackend):
                pool._network_backend = _Backend(inner, self)  # type: ignore[union-attr]
        return any(isinstance(getattr(pool, "_network_backend", None), _Backend) for pool in pools)

    def opened(self, stream: httpcore.NetworkStream) -> Callable[[], None]:
        """Take note of a connection. Returns what to call when it closes."""
        connection = stream.get_extra_info("socket")
        if not isinstance(connection, socket.socket):
            return lambda: None
        if _WINDOW_CLAMP is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, _WINDOW_CLAMP, WINDOW_BYTES)
        # TLS moves the descriptor into another object; a duplicate stays ours and reaches the same connection.
        ours = connection.dup()
        with self._lock:
            self._open.add(ours)
            cut = self._cut
        if cut:
            self.cut()
        return functools.partial(self._closed, ours)

    def _closed(self, ours: socket.socket) -> None:
        with self._lock:
            self._open.discard(ours)
        ours.close()

    def cut(self) -> None:
        """End every connection, now: who reads gets an error. For good."""
        with self._lock:
            self._cut = True
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self.client.close()
        with self._lock:
            left, self._open = self._open, set()
        for connection in left:
            connection.close()
