"""nats-py's client, made to last: whatever the server says or does, the connection is tried for anew.

nats-py closes a client for good when the server sends ``-ERR`` on a connection that works: a token that is changed and
changed back, one connection too many, a limit of subscriptions. The server closes the connection itself where it means
to, and that is what nats-py comes back from, with all subscriptions; an error that closes nothing ends nothing here.
Source: https://docs.nats.io/reference/reference-protocols/nats-protocol, "-ERR".
"""

from __future__ import annotations

import asyncio
import logging
import time

import nats.errors
from nats.aio.client import Client
from nats.protocol.parser import AUTHORIZATION_VIOLATION, PERMISSIONS_ERR, STALE_CONNECTION

log = logging.getLogger("llmlb.bus.lasting_client")


class LastingClient(Client):
    """In place of ``nats.aio.client.Client``."""

    _said: str | None = None

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
