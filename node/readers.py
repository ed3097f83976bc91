"""Finds out that nobody reads any more: a gateway that is killed cancels nothing, and its requests would run on.

The bus knows when nobody listens on a gateway's subjects. So each gateway that has requests here is asked, with an
empty message under its reply subjects (which every version ignores); the bus itself answers "no responders". Twice in
a row, and what it asked for is given up. One that comes back asks anew for all it had under way: nothing is lost by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable

from nats.aio.msg import Msg

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusError
from llmlb.node.flight import Flight

log = logging.getLogger("llmlb.node.readers")

EVERY_S = 2.0
SETTLE_S = 5.0
"""After the bus came back gateways may still be on their way back to it."""
MISSES = 2
"""In a row: one alone may be a gateway that is just connecting anew."""
_STREAM = "alive"


class Readers:
    """``flights``: the requests under way; ``give_up`` is called with each that nobody reads."""

    def __init__(self, bus: Bus, flights: Callable[[], Iterable[Flight]], give_up: Callable[[Flight], None]) -> None:
        self._bus, self._flights, self._give_up = bus, flights, give_up
        self._up_at = -math.inf
        self._stir = asyncio.Event()
        self._prefix = ""
        self._missed: set[str] = set()
        """Gateways that nobody answered for since the last look."""
        self._misses: dict[str, int] = {}

    async def start(self) -> None:
        """Begin to listen for the bus's answers; then :meth:`run`. Raises BusDown."""
        inbox = self._bus.client.new_inbox()
        self._prefix = f"{inbox}."
        self._bus.on_up(self._back_again)
        await self._bus.subscribe(f"{inbox}.*", self._on_nobody)

    async def run(self) -> None:
        """Look until cancelled; while nothing is under way, :meth:`stir` wakes it."""
        while True:
            await self._stir.wait()
            await asyncio.sleep(EVERY_S)
            idle = self._idle()
            await self.look(time.monotonic())
            if idle and self._idle():
                self._stir.clear()

    def _idle(self) -> bool:
        return not any(True for _ in self._flights())

    def stir(self) -> None:
        """There is a request under way."""
        self._stir.set()

    async def look(self, now: float) -> None:
        """Ask every gateway once. ``now`` is of the monotonic clock."""
        if not self._bus.connected or now - self._up_at < SETTLE_S:
            self._missed.clear()
            self._misses.clear()
            return
        asking = [subjects.gateway_of(flight.reply) for flight in self._flights() if not flight.cancelled]
        gateways = {gateway for gateway in asking if gateway is not None}
        self._misses = {one: self._misses[one] for one in self._missed & gateways}
        self._missed.clear()
        for gateway in gateways:
            with contextlib.suppress(BusError):
                await self._bus.publish_bytes(subjects.reply(gateway, _STREAM), b"", reply=self._prefix + gateway)

    async def _back_again(self) -> None:
        self._up_at = time.monotonic()

    async def _on_nobody(self, msg: Msg) -> None:
        gateway = msg.subject.removeprefix(self._prefix)
        if (msg.headers or {}).get("Status") != "503" or gateway in self._missed:
            return
        self._missed.add(gateway)
        self._misses[gateway] = self._misses.get(gateway, 0) + 1
        if self._misses[gateway] >= MISSES:
            gone = [flight for flight in self._flights() if subjects.gateway_of(flight.reply) == gateway]
            log.warning("gateway_gone gateway=%s requests=%d", gateway, len(gone))
            for flight in gone:
                self._give_up(flight)
