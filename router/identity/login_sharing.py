"""Gateways tell each other of attempts to log in, so that guessing is as slow at all of them together as at one.

A small message to all at the beginning of each attempt, and one with its outcome. Nobody waits for them: at other
gateways somebody may try as often as they are asked within the millisecond that takes. Without the bus, and for
gateways of an older version, each counts for itself; a gateway that starts knows of no attempts before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, LlmlbError
from llmlb.bus.messages.identity import LoginTried
from llmlb.bus.tasks import Background
from llmlb.router.identity.throttle import Outcome

log = logging.getLogger("llmlb.router.identity")

WAITING_MAX = 1000
"""Messages that wait for the bus; the oldest ones go."""
SETTLE_S = 3.0
"""Once the bus is back, others may still be on their way back to it."""


class LoginSharing:
    """``gateway_id``: of this process. :meth:`start` once the bus was opened."""

    def __init__(self, bus: Bus, gateway_id: str) -> None:
        self._bus = bus
        self._gateway_id = gateway_id
        self.on_heard: Callable[[Outcome, str, str], None] = lambda outcome, name, peer: None
        """Called with each attempt elsewhere: outcome, digest of the name, peer."""
        self.listens = False
        """It hears of what happens elsewhere."""
        self._waiting: deque[LoginTried] = deque(maxlen=WAITING_MAX)
        self._poke = asyncio.Event()
        self._background = Background("logins")

    def tell(self, outcome: Outcome, name: str, peer: str) -> None:
        """What happened here; name and peer as they are counted. Never waits."""
        self._waiting.append(LoginTried(gateway_id=self._gateway_id, name=name, peer=peer[:128], outcome=outcome))
        self._poke.set()

    def start(self) -> None:
        self._background.forever(self._run, "run")

    async def close(self) -> None:
        await self._background.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._bus.wait_up()
                if not self.listens:
                    await self._bus.subscribe(subjects.logins_tried(), self._on_message)
                    self.listens = True
                await self._tell()
            except LlmlbError as error:
                log.debug("login_not_told error=%r", error.message)
                await self._bus.wait_up()
                await asyncio.sleep(SETTLE_S)
                continue
            self._poke.clear()
            await self._poke.wait()

    async def _tell(self) -> None:
        """Raises BusDown; then it is told later."""
        while self._waiting:
            tried = self._waiting.popleft()
            try:
                await self._bus.publish(subjects.logins_tried(), tried)
            except LlmlbError:
                self._waiting.appendleft(tried)
                raise

    async def _on_message(self, msg: Msg) -> None:
        try:
            said = codec.decode_as(LoginTried, msg.data)
        except BadMessage as error:
            log.debug("login_unreadable error=%r", error.message)
            return
        if said.gateway_id != self._gateway_id:
            self.on_heard(said.outcome, said.name, said.peer)
