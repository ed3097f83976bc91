"""One connection's requests, read strictly: Sanic's HTTP/1 with our own reading of heads and bodies.

What Sanic's reader lets through, or does wrong, and this does not: see :mod:`llmlb.router.gateway.http_head`; chunks
whose end is not checked; trailers; "100 Continue" before a refusal; chunked answers to HTTP/1.0; a body that is read
to its end although nobody wants it.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

from sanic.http import Http, Stage
from sanic.http.http1 import HTTP_CONTINUE
from sanic.response import BaseHTTPResponse

from llmlb.router.gateway.http_head import CHUNK_LINE_MAX, HEAD_MAX, Head, HttpRefused, chunk_size, read_head

if TYPE_CHECKING:
    from llmlb.router.gateway.http_connection import Connection

_BEGINS = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
"""What a method may begin with; anything else is another protocol."""
SSE_COMMENT = b"3\r\n:\n\n\r\n"
"""One chunk with an empty comment."""


class StrictHttp(Http):
    """See the module. Raises HttpRefused inside Sanic's handling, which answers it."""

    protocol: Connection
    recv_buffer: bytearray
    request: Any
    request_body: Any
    request_bytes: int
    request_bytes_left: int
    request_max_size: int
    response_func: Any
    version: str
    head: Head
    """Of the request; the same object for heads that differ only in the length of the body."""
    __slots__ = ("head", "version")  # Sanic's metaclass leaves no room for others

    # Heads

    def init_for_request(self) -> None:
        """As Sanic's."""
        super().init_for_request()  # type: ignore[no-untyped-call]
        self.protocol.join_early()
        self.protocol.body_held.release()
        self.version = "1.1"

    async def http1_request_header(self) -> None:
        """Read a head; make the request of it."""
        self.protocol.began()
        try:
            head, length = read_head(self._head_here() or await self._raw_head())
        except asyncio.CancelledError:
            if self.protocol.transport is None:
                self.create_empty_request()  # Sanic logs it, and fails where there is none
            raise
        self.version = head.version
        self.keep_alive = head.keep_alive
        self.head_only = head.method == "HEAD"
        if length is not None and length > self.request_max_size:
            raise HttpRefused(413, self._too_large())
        self.upgrade_websocket = head.websocket
        if head.websocket:
            self.protocol.read_bytes()
        self.request = request = self.protocol.request_class(
            url_bytes=head.target.encode(),
            headers=head.headers,  # type: ignore[arg-type]  # it makes its own of it
            version=head.version,
            # HEAD is GET whose body is not sent: one set of routes and rules for both.
            method="GET" if self.head_only else head.method,
            transport=self.protocol.transport,  # type: ignore[arg-type]  # it is there: bytes came over it
            app=self.protocol.app,
        )
        if length != head.length:
            request.headers["content-length"] = str(length)
        self.protocol.request_class._current.set(request)
        request.stream = self
        self.head = head
        self._expect_body(head, length)
        self.protocol.state["requests_count"] += 1

    def _expect_body(self, head: Head, length: int | None) -> None:
        self.request_bytes_left = self.request_bytes = length or 0
        self.expecting_continue = head.expects
        self.request_body = "chunked" if length is None else length > 0 or None
        early = self.protocol.early
        if early is not None and (len(early) != length or self.recv_buffer or head.expects):
            self.protocol.join_early()  # more than this body, or less

    def _head_here(self) -> bytes:
        """As :meth:`_raw_head`, where it came as a whole; else nothing, and nothing is taken."""
        buf = self.recv_buffer
        end = buf.find(b"\r\n\r\n", 0, HEAD_MAX)
        if end <= 0 or buf.startswith(b"\r\n"):
            return b""
        raw = bytes(buf[:end])
        del buf[: end + 4]
        return raw

    async def _raw_head(self) -> bytes:
        """The bytes of the next head, taken out of the buffer."""
        buf = self.recv_buffer
        start = seen = 0
        while True:
            while buf.startswith(b"\r\n"):  # RFC 9112, 2.2: empty lines before a request are read over
                del buf[:2]
                start = seen = 0
            end = buf.find(b"\r\n\r\n", start)
            if 0 <= end <= HEAD_MAX:
                raw = bytes(buf[:end])
                del buf[: end + 4]
                return raw
            if end >= 0 or len(buf) > HEAD_MAX + 3:
                raise HttpRefused(431, f"the request's headers have more than {HEAD_MAX} bytes")
            if buf and buf != b"\r" and (buf[0] not in _BEGINS or _bare_line_feed(buf, seen)):
                raise HttpRefused(400, "this is not HTTP/1.1")
            start, seen = max(0, len(buf) - 3), len(buf)
            await self._receive_more()

    def _too_large(self) -> str:
        return f"the request body is larger than {self.request_max_size} bytes"

    # Bodies

    async def whole_body(self, limit: int) -> bytes:
        """All of the body. Raises HttpRefused: 413 as soon as it is more than ``limit``, 400 when it is malformed.

        Raises CapacityError when it is large and others fill the memory for such.
        """
        self.request_max_size = min(self.request_max_size, limit)
        if self.request_bytes > self.request_max_size:
            raise HttpRefused(413, self._too_large())
        self.protocol.body_held.grow(self.request_bytes)
        self.protocol.join_early()
        if self.expecting_continue:
            self.expecting_continue = False
            await self._send(HTTP_CONTINUE)
        self.protocol.body_began()
        body = await (self._chunks() if self.request_body == "chunked" else self._sized(self.request_bytes_left))
        self.request_body = None
        self.request_bytes_left = 0
        self.protocol.body_ended()
        return body

    def body_here(self, limit: int) -> bytes | None:
        """As :meth:`whole_body`, for one that has come already. None: it has not, or there is more to it."""
        size = self.request_bytes_left
        early = self.protocol.early
        if early is not None and size <= limit:
            self.protocol.body_held.grow(size)
            self.protocol.early = None
            self.request_body = None
            self.request_bytes_left = 0
            return early
        self.protocol.join_early()
        buf = self.recv_buffer
        if self.request_body is not True or self.expecting_continue or size > len(buf) or size > limit:
            return None
        self.protocol.body_held.grow(size)
        body = bytes(buf) if size == len(buf) else bytes(buf[:size])
        del buf[:size]
        self.request_body = None
        self.request_bytes_left = 0
        return body

    async def _sized(self, length: int) -> bytes:
        if len(self.recv_buffer) >= length:
            return self._taken(length)
        if not self.recv_buffer:
            return await self.protocol.receive(length)
        sink = io.BytesIO()
        await self._into(sink, length)
        return sink.getvalue()

    async def _into(self, sink: io.BytesIO, length: int) -> None:
        """Move so many bytes. What is not here yet goes past the buffer."""
        buf = self.recv_buffer
        if len(buf) >= length:
            sink.write(self._taken(length))
            return
        sink.write(buf)
        length -= len(buf)
        buf.clear()
        await self.protocol.receive_into(sink, length)

    def _taken(self, length: int) -> bytes:
        with memoryview(self.recv_buffer) as view:
            taken = bytes(view[:length])
        del self.recv_buffer[:length]
        return taken

    async def _chunks(self) -> bytes:
        sink = io.BytesIO()
        while size := chunk_size(await self._line()):
            self.request_bytes += size
            if self.request_bytes > self.request_max_size:
                raise HttpRefused(413, self._too_large())
            self.protocol.body_held.grow(self.request_bytes)
            await self._into(sink, size)
            if await self._line():
                raise HttpRefused(400, "the body's chunks are malformed")
        if await self._line():
            raise HttpRefused(400, "fields after the body are not taken")
        return sink.getvalue()

    async def _line(self) -> bytes:
        """The next line of the chunks' framing, without its end."""
        buf = self.recv_buffer
        while (end := buf.find(b"\r\n", 0, CHUNK_LINE_MAX)) < 0:
            if len(buf) >= CHUNK_LINE_MAX:
                raise HttpRefused(400, "the body's chunks are malformed")
            await self._receive_more()
        line = bytes(buf[:end])
        del buf[: end + 2]
        return line

    async def read(self) -> bytes | None:
        """Sanic's way to get rid of a body that nobody read: only what is here already, else the connection ends."""
        self._leave_body()
        return None

    def _leave_body(self) -> None:
        self.protocol.join_early()
        here = self._body_is_here()
        self.request_body = None
        if here:
            self._taken(self.request_bytes_left)
            return
        self.keep_alive = False
        self.protocol.linger = True

    # Answers

    def respond(self, response: BaseHTTPResponse) -> BaseHTTPResponse:
        """As Sanic's; whoever is answered before its body was wanted need not send it."""
        self.protocol.join_early()
        if self.expecting_continue or (self.request_body and not self._body_is_here()):
            self.expecting_continue = False
            self.keep_alive = False
        if self.request_body and 200 <= response.status < 300:
            self._leave_body()  # of OPTIONS, which no handler sees: Sanic's log has an error of it else
        return super().respond(response)

    def _body_is_here(self) -> bool:
        return self.request_body is True and self.request_bytes_left <= len(self.recv_buffer)

    async def error_response(self, exception: Exception) -> None:
        """As Sanic's; the client may still be sending, and is listened to until it has the answer."""
        self.expecting_continue = False
        if self.stage is Stage.REQUEST or self.request_body:
            self.protocol.linger = True
        await super().error_response(exception)

    async def answer(self, data: bytes) -> None:
        """The whole answer, head and body, as bytes. Raises RequestCancelled when the client is gone."""
        if not self.protocol.send_now(data):
            await self._send(data)
        self.response_func = None
        self.stage = Stage.IDLE

    async def chunk(self, head: bytes, data: bytes, *, last: bool = False) -> None:
        """One chunk of an answer; ``head`` before the first one. Raises RequestCancelled when the client is gone."""
        if head:
            # Sanic knows of it, whatever happens.
            response = BaseHTTPResponse()  # type: ignore[no-untyped-call]
            response.status, response.content_type = 200, "text/event-stream"
            response.stream, self.response = self, response
        out = b"%b%x\r\n%b\r\n" % (head, len(data), data) if data else head
        out = out + b"0\r\n\r\n" if last else out
        if not self.protocol.send_now(out):
            await self._send(out)
        # Not before: until then the connection is not idle, and a probe must not come before the head.
        if last:
            self.response_func = None
            self.stage = Stage.IDLE
        elif head:
            self.response_func = self.http1_response_chunked
            self.stage = Stage.RESPONSE

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """As Sanic's; an answer of unknown length to HTTP/1.0 ends with the connection, as it knows no chunks."""
        response = self.response
        unframed = not end_stream and self.version == "1.0" and not self.head_only
        if not unframed or getattr(response, "body", None) or "content-length" in response.headers:
            await super().http1_response_header(data, end_stream)
            return
        self.keep_alive = False
        response.headers["connection"] = "close"
        lines = [b"HTTP/1.1 %d OK\r\n" % response.status]
        lines += [b"%b: %b\r\n" % field for field in response.processed_headers]
        self.response_func = self._unframed
        await self._send(b"".join(lines) + b"\r\n" + data)
        self.stage = Stage.RESPONSE

    async def _unframed(self, data: bytes, end_stream: bool) -> None:
        if data:
            await self._send(data)
        if end_stream:
            self.response_func = None
            self.stage = Stage.IDLE

    def probe(self) -> bytes:
        """Bytes that may be written now and say nothing: what comes back shows whether anybody is there."""
        if self.version == "1.0" or self.head_only:
            return b""
        if self.stage is Stage.HANDLER:
            return HTTP_CONTINUE
        chunked = getattr(self.response_func, "__name__", "") == "http1_response_chunked"
        streams = chunked and str(self.response.content_type).startswith("text/event-stream")
        return SSE_COMMENT if streams and self.stage is Stage.RESPONSE else b""


def _bare_line_feed(data: bytearray, begin: int) -> bool:
    """Whether a line feed from there on has no carriage return before it: no head will ever end."""
    at = data.find(b"\n", begin)
    while at >= 0:
        if at == 0 or data[at - 1] != 0x0D:
            return True
        at = data.find(b"\n", at + 1)
    return False
