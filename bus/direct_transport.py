"""nats-py's TCP transport with two short ways: what is read goes to the parser at once, what is written to the socket.

As nats-py has it, what arrives is copied into a buffer, wakes a task, is copied out again and then parsed; what is sent
wakes another task first. Here the parser is asked inside the transport's own ``data_received``, and takes what it can
without waiting (:meth:`llmlb.bus.fast_parser.FastParser.take`). All else goes nats-py's way, and everything after it
too, until nats-py's reader has worked on it and waits for more: no message overtakes another.
Made for each connection anew, also for the one that TLS puts around it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport

Take = Callable[[bytes], bytes]
"""Called with what was read; works on the beginning of it, and returns the rest. Never waits, never raises."""


class DirectProtocol(asyncio.StreamReaderProtocol):
    """Between the socket and nats-py's stream reader."""

    def __init__(self, reader: asyncio.StreamReader, take: Take) -> None:
        super().__init__(reader)
        self.idle = False
        """nats-py's reader waits for data, and has worked on all that came before."""
        self.full = False
        """More is to be written than the socket takes."""
        self._take = take

    def data_received(self, data: bytes) -> None:
        if self.idle:
            data = self._take(data)
            if not data:
                return
            self.idle = False
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """nats-py connects anew after an error of the system, and stops reading after any other."""
        if exc is not None and not isinstance(exc, OSError):
            lost = ConnectionResetError(f"the connection broke: {exc!r}")
            lost.__cause__ = exc
            exc = lost
        self.idle = False
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self.full = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self.full = False
        super().resume_writing()


class DirectTransport(TcpTransport):
    """One for all connections of a client, one after the other, as nats-py uses its own."""

    def __init__(self, take: Take) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._take = take
        self._protocol: DirectProtocol | None = None

    def __bool__(self) -> bool:
        """nats-py would replace one that is not connected yet."""
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        """Raises OSError, TimeoutError."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=buffer_size)
        protocol = DirectProtocol(reader, self._take)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname, uri.port)  # type: ignore[arg-type]
        self._use(transport, protocol, reader)
        self._bare_io_reader, self._bare_io_writer = self._io_reader, self._io_writer

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: float
    ) -> None:
        """Around the connection that there is. Raises OSError (ssl.SSLError is one), TimeoutError."""
        assert self._io_writer is not None, "connect comes first"
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=buffer_size)
        protocol = DirectProtocol(reader, self._take)
        name = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            transport = await loop.start_tls(self._io_writer.transport, protocol, ssl_context, server_hostname=name)
        if transport is None:  # as it is when the connection was lost at this very moment
            raise ConnectionResetError("the connection was lost while TLS began")
        protocol.connection_made(transport)  # start_tls does not; without it the reader could not pause anything
        self._use(transport, protocol, reader)

    def _use(self, transport: asyncio.Transport, protocol: DirectProtocol, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        self._protocol = protocol

    async def read(self, buffer_size: int) -> bytes:
        """What nats-py's reader waits in; nothing else calls it."""
        reader, protocol = self._io_reader, self._protocol
        assert reader is not None, "connect comes first"
        assert protocol is not None
        protocol.idle = True
        try:
            return await reader.read(buffer_size)
        finally:
            protocol.idle = False

    def write_now(self, parts: Sequence[Any]) -> bool:
        """Write where nothing has to be waited for. False: nothing was written."""
        protocol, writer = self._protocol, self._io_writer
        if protocol is None or writer is None or protocol.full:
            return False
        transport = writer.transport
        if transport.is_closing():
            return False
        try:
            transport.writelines(parts)
        except (OSError, RuntimeError):
            return False  # the flusher meets the same, and does what it does then
        return True
