"""The stored answers of ``/v1/responses``, on the bus: every gateway of the cluster finds what another one stored.

Why there: a router of several processes, a second router and the nodes' own gateways share nothing else, and the
stream survives all of them. At most 30 days and 1 GiB; the oldest go first. One message an answer, with what came in
for it; a conversation is a chain of them, so that it takes no more room than its turns.
"""

from __future__ import annotations

import logging

import nats.errors
import nats.js.errors

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BusDown, LlmlbError, NotFound
from llmlb.bus.messages.responses import StoredResponse
from llmlb.bus.streams import RESPONSES, ensure_stream

log = logging.getLogger("llmlb.router.responses")


class ResponseStore:
    """Stored answers. Its methods raise BusError and DeadlineExceeded."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._there = False
        """True: the stream was there when last looked."""

    async def put(self, stored: StoredResponse) -> None:
        """Keep an answer. Also raises MessageTooLarge: 8 MiB with what came in for it."""
        subject = subjects.response(stored.response_id)
        if self._there:
            try:
                await self._bus.publish_stored(subject, stored)
                return
            except BusDown:
                self._there = False  # the stream may have gone with the bus's store
        await self._ensure()
        await self._bus.publish_stored(subject, stored)

    async def get(self, response_id: str) -> StoredResponse:
        """Also raises NotFound."""
        try:
            subject = subjects.response(response_id)
        except ValueError:
            raise _unknown(response_id) from None
        again = self._there
        await self._ensure()
        try:
            message = await self._bus.client.jetstream().get_last_msg(
                subjects.STREAM_RESPONSES, subject, direct=bool(RESPONSES.allow_direct)
            )
        except nats.js.errors.NotFoundError:
            raise _unknown(response_id) from None
        except (nats.errors.Error, OSError, TimeoutError) as error:
            self._there = False
            if again and isinstance(error, nats.errors.NoRespondersError):
                return await self.get(response_id)  # the stream may have gone with the bus's store
            mapped = map_nats_error(error)
            raise BusDown("the stored responses can't be read now", detail=mapped.detail) from error
        return codec.decode_as(StoredResponse, message.data or b"")

    async def delete(self, response_id: str) -> None:
        """Forget an answer. What went on from it can't be gone on with any more. Also raises NotFound."""
        await self.get(response_id)
        try:
            await self._bus.client.jetstream().purge_stream(
                subjects.STREAM_RESPONSES, subject=subjects.response(response_id)
            )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise map_nats_error(error) from error

    async def _ensure(self) -> None:
        if self._there:
            return
        if not self._bus.connected:
            raise BusDown("the bus is away")
        try:
            await ensure_stream(self._bus.client, RESPONSES, replicas=self._bus.settings.bus_replicas)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            mapped = map_nats_error(error)
            log.warning("stream_not_made stream=%s error=%r", RESPONSES.name, mapped.message)
            raise mapped from error
        self._there = True


def _unknown(response_id: str) -> LlmlbError:
    return NotFound(f"no response '{response_id[:80]}' is stored here")
