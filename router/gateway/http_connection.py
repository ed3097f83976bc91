"""One connection of a client: how long it may take, what happens when it stops sending or reading.

Sanic counts time from the last byte, so a client that sends one byte a minute stays for ever; here a head has a time
as a whole, and a body has one that grows with what came of it. Sanic takes the end of a client's sending for its end;
here such a client still gets its answer.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from dataclasses import dataclass
from typing import Any

from sanic.exceptions import RequestCancelled, RequestTimeout
from sanic.http import Stage
from sanic.server.protocols.websocket_protocol import WebSocketProtocol

from llmlb.router.gateway.body_budget import Held
from llmlb.router.gateway.http_head import HttpRefused
from llmlb.router.gateway.http_receiver import Receiver
from llmlb.router.gateway.http_stream import StrictHttp

log = logging.getLogger("llmlb.router.gateway.http_connection")

BODY_RATE_MIN = 1024
"""Bytes a second that a body must come with, after the first ``client_timeout_s``."""
LINGER_S = 3.0
"""How long a client that was refused is listened to. Closed at once, it would lose the answer: RFC 9112, 9.6."""
LINGER_BYTES = 256 * 1024 * 1024
PROBES_S = (0.02, 0.1, 0.5, 2.0, 10.0)
"""When a client that has ended its sending is asked for signs of life; then again and again after the last."""
OLD_PROBE_S = 1.0
"""After this an HTTP/1.0 client that has ended its sending counts as gone: it can't be asked."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long clients may take, in seconds, and how many may be there."""

    client_s: float
    """For a head; for silence within a body; to read what was written."""
    idle_s: float
    """Between two requests, and before the first."""
    connections_max: int = 0
    """0: no limit."""


class _Arrival:
    """That bytes came: as asyncio.Event for the one task of a connection, without its list of who waits."""

    __slots__ = ("_is_set", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    def wait(self) -> asyncio.Future[None]:
        """To be awaited at once."""
        self._waiting = waiting = self._loop.create_future()
        if self._is_set:
            waiting.set_result(None)
        return waiting


class Connection(WebSocketProtocol):
    """Sanic's protocol, with the rules of this module.

    ``app.ctx`` holds for all of them a :class:`Patience`, a :class:`~llmlb.router.gateway.body_budget.BodyBudget`, and
    the buffer that they read into (``arrivals``).
    """

    HTTP_CLASS = StrictHttp
    # Sanic's metaclass leaves no room for others.
    __slots__ = (
        *("body_held", "early", "eof", "linger", "patience"),
        *("_began", "_body_began", "_body_bytes", "_buffer_max", "_direct", "_dropped", "_first", "_sink"),
        *("_sink_left", "_timer"),
    )
    _http: StrictHttp | None
    recv_buffer: bytearray

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience: Patience = self.app.ctx.patience
        self.request_handler = self.app.ctx.short_way.handle
        self._data_received: Any = _Arrival(self.loop)
        self._buffer_max: int = self.app.config.REQUEST_BUFFER_SIZE
        self.body_held = Held(self.app.ctx.body_budget)
        self.early: bytes | None = None
        """What came behind a head in one read, until that head is read: it belongs behind what the buffer holds."""
        self.eof = False
        """The client sends no more."""
        self.linger = False
        """What the client still sends has to be read over before the connection can be closed."""
        self._dropped: int | None = None
        """Bytes read over; None: it is not closing."""
        self._sink: io.BytesIO | None = None
        self._sink_left = 0
        self._direct = False
        self._first: bytes | None = None
        """A body that came at once."""
        self._began = 0.0
        self._body_began: float | None = None
        self._body_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    # Told by the stream

    def began(self) -> None:
        """The first bytes of a request are here."""
        self._began = time.monotonic()
        self._body_began = None

    def body_began(self) -> None:
        """The body is read from now on."""
        self._body_began = time.monotonic()
        self._body_bytes = 0

    def body_ended(self) -> None:
        """It is here."""
        self._body_began = None

    async def receive(self, count: int) -> bytes:
        """Read so many bytes, of which none are here yet. Raises as :meth:`receive_into`."""
        self._direct, self._first = True, None
        sink = io.BytesIO()
        try:
            await self.receive_into(sink, count)
            return sink.getvalue() if self._first is None else self._first
        finally:
            self._direct, self._first = False, None

    async def receive_into(self, sink: io.BytesIO, count: int) -> None:
        """Read so many bytes into ``sink``. Raises HttpRefused when they end before."""
        self._sink, self._sink_left = sink, count
        try:
            while self._sink_left:
                await self.receive_more()
        finally:
            self._sink = None

    async def receive_more(self) -> None:
        """Wait for bytes. Raises HttpRefused within a body that has ended early; else such a connection ends."""
        transport = self.transport
        if self.eof and transport is not None and not transport.is_closing():
            if self._http is not None and self._http.stage is Stage.HANDLER:
                raise HttpRefused(400, "the request body ended early")
            self.close()
        self._data_received.clear()
        # Of a connection that closes nothing comes: its end cancels this.
        if transport is not None and not transport.is_closing():
            transport.resume_reading()
        await self._data_received.wait()

    # Sending

    async def send(self, data: bytes) -> None:
        """Write; wait while the client does not read, and not for ever. Raises RequestCancelled."""
        if not self._can_write.is_set():
            try:
                async with asyncio.timeout(self.patience.client_s):
                    await self._can_write.wait()
            except TimeoutError:
                log.info("slow_client_closed seconds=%g", self.patience.client_s)
                self.cut()
                raise RequestCancelled from None
        if self.transport is None or self.transport.is_closing():
            raise RequestCancelled
        self.transport.write(data)
        self._time = time.monotonic()

    def send_now(self, data: bytes) -> bool:
        """As :meth:`send`, where it needs no waiting. False: nothing was written."""
        transport = self.transport
        if transport is None or transport.is_closing() or not self._can_write.is_set():
            return False
        transport.write(data)
        self._time = time.monotonic()
        return True

    # Time

    def check_timeouts(self) -> None:
        """Runs itself again and again."""
        http, now = self._http, time.monotonic()
        if self._task is None or http is None or self.websocket is not None:
            return
        if http.stage is Stage.IDLE and now - self._time > self.patience.idle_s:
            self._task.cancel()
        elif (http.stage is Stage.REQUEST and now - self._began > self.patience.client_s) or self._body_is_late(now):
            http.exception = RequestTimeout("Request Timeout")
            http.keep_alive = False
            self._task.cancel()
        else:
            pause = min(self.patience.client_s, self.patience.idle_s) / 4
            self._callback_check_timeouts = self.loop.call_later(min(max(0.1, pause), 5.0), self.check_timeouts)

    def _body_is_late(self, now: float) -> bool:
        if self._body_began is None:
            return False
        allowed = self.patience.client_s + self._body_bytes / BODY_RATE_MIN
        return now - self._body_began > allowed or now - self._time > self.patience.client_s

    # The end

    def close(self, timeout: float | None = None) -> None:
        """As Sanic's; a client that may still be sending is first told, and listened to for a while."""
        transport = self.transport
        if not self.linger or self.eof or transport is None or transport.is_closing() or self._dropped is not None:
            super().close(timeout)
            return
        self._dropped = 0
        if self._callback_check_timeouts:
            self._callback_check_timeouts.cancel()
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        self._timer = self.loop.call_later(LINGER_S, transport.abort)

    def close_if_idle(self) -> bool:
        """As Sanic's; who is only listened to is idle."""
        if self._dropped is not None:
            self.cut()
            return True
        return bool(super().close_if_idle())  # type: ignore[no-untyped-call]

    def _probe(self, at: int) -> None:
        """A client that has ended its sending may be waiting for its answer, or gone: write, and see."""
        http, transport = self._http, self.transport
        if http is None or transport is None or transport.is_closing():
            return
        if http.stage in (Stage.HANDLER, Stage.RESPONSE):
            if http.version == "1.0" and at:
                transport.abort()
                return
            if data := http.probe():
                transport.write(data)
        pause = OLD_PROBE_S if http.version == "1.0" else PROBES_S[min(at, len(PROBES_S) - 1)]
        self._timer = self.loop.call_later(pause, self._probe, at + 1)

    async def websocket_handshake(self, request: Any, subprotocols: Any = None) -> Any:
        """As Sanic's, which refuses a client that offers none of the subprotocols: here it goes without."""
        given = ",".join(request.headers.getall("sec-websocket-protocol", []))
        offered = {part.strip() for part in given.split(",")}
        return await super().websocket_handshake(request, [one for one in subprotocols or () if one in offered] or None)

    # asyncio's protocol

    def connection_made(self, transport: Any) -> None:
        """One more; where there are too many, the one that idles for longest goes."""
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        transport.set_protocol(Receiver(self, self.app.ctx.arrivals))
        if 0 < self.patience.connections_max < len(self.connections):
            idle = [one for one in self.connections if one is not self and one.idles]
            min(idle, key=lambda one: one._time, default=self).cut()

    def cut(self) -> None:
        """End it at once."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def idles(self) -> bool:
        """No request of it is under way."""
        http = self.http  # None before its task has begun
        return http is not None and http.stage is Stage.IDLE and self.websocket is None

    @property
    def awaits_request(self) -> bool:
        """Whatever comes next is a head, from its first byte."""
        http = self.http  # None before its task has begun
        return (
            http is not None
            and http.stage is Stage.IDLE
            and not self.recv_buffer
            and self.early is None
            and self._sink is None
            and self._dropped is None
            and self.websocket is None
        )

    def request_received(self, head: memoryview, rest: bytes) -> None:
        """A head to its end, and what came behind it; only while one is awaited."""
        self._body_bytes += len(head) + len(rest)
        self._time = time.monotonic()
        self.recv_buffer += head
        self.early = rest
        if len(rest) >= self._buffer_max and self.transport is not None:
            self.transport.pause_reading()
        self._data_received.set()

    def join_early(self) -> None:
        """From now on the buffer holds all that came."""
        if self.early is not None:
            self.recv_buffer += self.early
            self.early = None

    def read_bytes(self) -> None:
        """This becomes a websocket, and Sanic asks the transport for its protocol."""
        self.join_early()
        if self.transport is not None:
            self.transport.set_protocol(self)

    def data_received(self, data: bytes | memoryview) -> None:
        """Into the body that is read, over, or into the buffer. A view is read before this returns."""
        if self._dropped is not None:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.cut()
            return
        self._body_bytes += len(data)
        if self.websocket is not None:
            super().data_received(bytes(data))  # type: ignore[no-untyped-call]
            return
        self._time = time.monotonic()
        self.join_early()
        if self._sink is None or not self._sink_left:  # no body is read, or it is whole and this is behind it
            self.recv_buffer += data
            if len(self.recv_buffer) >= self._buffer_max and self.transport is not None:
                self.transport.pause_reading()
            self._data_received.set()
            return
        if len(data) > self._sink_left:
            self.recv_buffer += data[self._sink_left :]
            data = data[: self._sink_left]
        self._sink_left -= len(data)
        if self._direct and not self._sink_left and not self._sink.tell():
            self._first = bytes(data)  # all of it at once
        else:
            self._sink.write(data)
        if not self._sink_left:
            self._data_received.set()

    def eof_received(self) -> bool | None:
        """The client sends no more. True keeps the connection for what it still has to get."""
        http = self.http
        if self.websocket is not None:
            return self.websocket.eof_received()
        if self._dropped is not None or http is None or http.upgrade_websocket or self.eof:
            return False
        self.eof = True
        if http.stage in (Stage.IDLE, Stage.REQUEST) and not self.recv_buffer:
            return False
        self._data_received.set()
        self._timer = self.loop.call_later(PROBES_S[0], self._probe, 0)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        if self._timer is not None:
            self._timer.cancel()
        self.body_held.release()
        super().connection_lost(exc)  # type: ignore[no-untyped-call]
