"""Gateways tell each other what API keys with limits have used, so that a limit holds for all of them together.

Small messages to all, some 50 ms after a use, and each second while requests of such keys are under way. Nobody waits
for them: a request is let in by what is known here, so that a key may get as much more as is used at other gateways
within those 50 ms. A gateway that is new or was away asks, and takes the levels of the others for its own. Without the
bus, and for gateways of an older version, each counts for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Mapping

from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, LlmlbError
from llmlb.bus.messages.identity import KeysUsed
from llmlb.bus.tasks import Background
from llmlb.router.identity.limits import Meter

log = logging.getLogger("llmlb.router.identity")

GATHER_S = 0.05
"""So long uses are gathered before they are told."""
RUNNING_EVERY_S = 1.0
CATCH_UP_S = 2.0
"""After it asked, a gateway takes the levels of the others for so long."""
RETRY_S = 1.0
KEYS_AT_ONCE = 500


class Sharing:
    """``meters``: those of the keys with limits, by key id. :meth:`start` once the bus was opened."""

    def __init__(self, bus: Bus, meters: Mapping[str, Meter]) -> None:
        self.gateway_id = uuid.uuid4().hex
        self._bus = bus
        self._meters = meters
        self._changed: dict[str, None] = {}
        """Keys to tell of, in their order; as many as there are keys with limits."""
        self._poke = asyncio.Event()
        self._asks = True
        self._catch_up_until = 0.0
        self._running_due = 0.0
        """When requests under way are told of next, though nothing changed; of the monotonic clock."""
        self._subscribed = False
        self._closing = False
        self._background = Background("key_limits")

    def changed(self, key_id: str) -> None:
        """There is something to tell of this key."""
        self._changed[key_id] = None
        self._poke.set()

    def start(self) -> None:
        self._bus.on_up(self._back_again)
        self._background.forever(self._run, "run")

    async def close(self) -> None:
        self._closing = True
        self._poke.set()
        await self._background.close()

    async def _back_again(self) -> None:
        self._asks = True
        self._poke.set()

    async def _run(self) -> None:
        while not self._closing:
            try:
                await self._bus.wait_up()
                if not self._subscribed:
                    await self._bus.subscribe(subjects.keys_used(), self._on_message)
                    self._subscribed = True
                await self._tell()
            except LlmlbError as error:
                log.debug("key_use_not_told error=%r", error.message)
                await asyncio.sleep(RETRY_S)
                continue
            await self._wait()

    async def _wait(self) -> None:
        """Until there is something to tell, and a moment more for what comes with it."""
        if not self._changed and not self._asks:
            running = any(meter.running for meter in self._meters.values())
            self._poke.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RUNNING_EVERY_S if running else None):
                    await self._poke.wait()
        await asyncio.sleep(GATHER_S)

    async def _tell(self) -> None:
        """Raises BusDown; then it is told later."""
        now = time.monotonic()
        if now >= self._running_due:
            self._running_due = now + RUNNING_EVERY_S
            self._changed.update(dict.fromkeys(key_id for key_id, meter in self._meters.items() if meter.running))
        asks, keys = self._asks, list(self._changed)[:KEYS_AT_ONCE]
        if not asks and not keys:
            return
        uses = [self._meters[key_id].tell(key_id, now) for key_id in keys if key_id in self._meters]
        if asks:
            self._catch_up_until = now + CATCH_UP_S
        # Taken note of before it is out: what happens meanwhile is told next time.
        for key_id in keys:
            del self._changed[key_id]
        self._asks = False
        try:
            await self._bus.publish(
                subjects.keys_used(), KeysUsed(gateway_id=self.gateway_id, asks=asks, keys=tuple(uses))
            )
        except LlmlbError:
            self._asks = self._asks or asks
            self._changed.update(dict.fromkeys(keys))
            raise
        for use in uses:
            if (meter := self._meters.get(use.key_id)) is not None:
                meter.told(use)

    async def _on_message(self, msg: Msg) -> None:
        try:
            said = codec.decode_as(KeysUsed, msg.data)
        except BadMessage as error:
            log.debug("key_use_unreadable error=%r", error.message)
            return
        if said.gateway_id == self.gateway_id:
            return
        now = time.monotonic()
        for use in said.keys:
            if (meter := self._meters.get(use.key_id)) is not None:
                meter.heard(said.gateway_id, use, now, catch_up=now < self._catch_up_until)
        if said.asks and self._meters:
            self._changed.update(dict.fromkeys(self._meters))
            self._poke.set()
