"""What comes over the connections of a gateway, read into one buffer: a body that comes with its head is copied once.

A transport that reads for a plain protocol makes bytes of each read, which then go into the connection's buffer and
from there into the body. Here the event loop reads into a buffer that all connections of an application share, since
each looks at what it read before the next one reads. Source: asyncio's ``BufferedProtocol``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmlb.router.gateway.http_head import HEAD_MAX

if TYPE_CHECKING:
    from llmlb.router.gateway.http_connection import Connection

BUFFER_BYTES = 256 * 1024
"""Of one read at the most; as much as uvloop reads at once by itself."""
APART_BYTES = 4096
"""Shorter requests go through the connection's buffer: they cost less there."""


class Receiver(asyncio.BufferedProtocol):
    """Stands in for one connection before its transport. Nothing of it may wait."""

    def __init__(self, connection: Connection, buffer: bytearray) -> None:
        """``buffer``: not resized, and read into by nobody of another event loop."""
        self._connection = connection
        self._buffer = buffer
        self._view = memoryview(buffer)
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]  # one call less
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes are in the buffer, until this returns."""
        connection = self._connection
        if nbytes >= APART_BYTES and connection.awaits_request:
            end = self._buffer.find(b"\r\n\r\n", 0, min(nbytes, HEAD_MAX)) + 4
            if 4 < end < nbytes:
                connection.request_received(self._view[:end], bytes(self._view[end:nbytes]))
                return
        connection.data_received(self._view[:nbytes])

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
