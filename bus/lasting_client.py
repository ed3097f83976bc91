"""nats-py's client, made to last: whatever the server says or does, the connection is tried for anew.

nats-py closes a client for good when the server sends ``-ERR`` on a connection that works: a token that is changed and
changed back, one connection too many, a limit of subscriptions. The server closes the connection itself where it means
to, and that is what nats-py comes back from, with all subscriptions; an error that closes nothing ends nothing here.
Source: https://docs.nats.io/reference/reference-protocols/nats-protocol, "-ERR".

It has the parser and the transport that this package uses, and a way to the socket that spares nats-py's flusher a
change of tasks.
"""

from __future__ import annotations

import asyncio
import logging
import time

import nats.errors
from nats.aio.client import Client, Srv
from nats.protocol.parser import AUTHORIZATION_VIOLATION, PERMISSIONS_ERR, STALE_CONNECTION

from llmlb.bus.direct_transport import DirectTransport
from llmlb.bus.fast_parser import FastParser

log = logging.getLogger("llmlb.bus.lasting_client")

WRITE_MOST = 1024 * 1024
"""Bytes: some long prompts. More at once is the flusher's, which then waits until the system has taken most of it."""


class LastingClient(Client):
    """In place of ``nats.aio.client.Client``."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = FastParser(self)
        self._ps = self.parser
        self._direct = DirectTransport(self.parser.take)
        self._said: str | None = None
        self._flush_comes = False

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport is None and s.uri.scheme not in ("ws", "wss"):
            self._transport = self._direct
        await super()._connect_to_server(s)

    def flush_soon(self) -> None:
        """Write what is pending in the next step of the event loop: once for all that comes until then."""
        if not self._flush_comes:
            self._flush_comes = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        """What the flusher does, where nothing has to be waited for; else it is told to."""
        self._flush_comes = False
        size, queue = self._pending_data_size, self._flush_queue
        if not size or queue is None or (size <= WRITE_MOST and self._write_pending()):
            return
        if self.is_connected and queue.empty():  # a connection that comes back writes what is pending by itself
            queue.put_nowait(asyncio.get_running_loop().create_future())

    def _write_pending(self) -> bool:
        """Hand what is pending to the socket. False: it takes nothing now, and nothing was done."""
        if self._transport is not self._direct or not self.is_connected or not self._direct.write_now(self._pending):
            return False
        self._pending = []
        self._pending_data_size = 0
        return True

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """nats-py's overtakes what is pending: ``flush`` returned before a subscription that came first had arrived."""
        if self._pending_data_size:
            self._write_pending()
        await super()._send_ping(future)

    async def _process_err(self, err_msg: str) -> None:
        """An error that the server sent on a connection that works. It closes the connection, or it does not."""
        if STALE_CONNECTION in err_msg or PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
            return
        text = err_msg.strip("'")
        refused = AUTHORIZATION_VIOLATION in err_msg
        self._err = nats.errors.AuthorizationError() if refused else nats.errors.Error(f"nats: {text}")
        if text != self._said:
            self._said = text
            log.warning("bus_refused error=%r", text)
        if self._current_server is not None:
            # The next attempt waits its pause: a server that takes a connection and then refuses it is not hammered.
            self._current_server.last_attempt = time.monotonic()

    async def _attempt_reconnect(self) -> None:
        """As nats-py's, which ends for good by an error that it does not know.

        Such as an INFO that is cut off, or a server that takes the connection and then says nothing (2.16: two of its
        tasks read from the next one at once).
        """
        while not self.is_closed:
            try:
                await super()._attempt_reconnect()
                return
            except Exception:
                log.exception("bus_reconnection_failed")  # the top of a task: it goes on with the next attempt
                self._status = Client.RECONNECTING
                await asyncio.sleep(self.options["reconnect_time_wait"])
