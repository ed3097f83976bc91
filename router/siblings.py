"""The processes of one gateway (``llmlb router serve --workers N``): whichever is asked speaks for all of them.

The kernel gives a connection to any of them, so ``/v0/status`` and ``/metrics`` must not depend on which. Each process
says once a second over the bus what only it knows; the first one also says how many requests the last hour had, which
it alone counts. One that is scraped asks the others for their metrics. A process that does not answer is left out: a
gap in its own series, which carry its number, and no wrong sum.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import time
import zlib
from collections.abc import Awaitable, Callable

import nats.errors
from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, LlmlbError
from llmlb.bus.messages.gateways import AskGatewayProcess, GatewayProcess
from llmlb.bus.tasks import Background
from llmlb.router.history import RequestCount

log = logging.getLogger("llmlb.router.siblings")

EVERY_S = 1.0
FRESH_S = 3.5
"""What a process said of its queue counts for so long."""
ANSWER_S = 2.0
"""A scrape waits so long for the other processes; Prometheus itself gives up after 10 s."""
FIRST_S = 2.0
"""A process that begins waits so long for what the first one says."""
METRICS_MAX = 64 * 1024 * 1024
"""Bytes of one process's families."""


class Siblings:
    """Process number ``process`` of ``count``, of the gateway ``group``. ``history`` is the first one's."""

    def __init__(
        self,
        bus: Bus,
        group: str,
        process: int,
        count: int,
        *,
        waiting: Callable[[], tuple[int, float]],
        history: RequestCount | None,
    ) -> None:
        self.process = process
        self.own: Callable[[], Awaitable[bytes]] | None = None
        """Families of metrics of this process."""
        self._bus, self._group, self._count = bus, group, count
        self._waiting, self._history = waiting, history
        self._said: dict[int, tuple[GatewayProcess, float]] = {}
        """The last of each other process, and when it came."""
        self._last_hour = 0
        self._heard = asyncio.Event()
        """The first process has said something."""
        self._background = Background("siblings")

    # What it says of all

    @property
    def last_hour(self) -> int:
        """Requests of the cluster that ended in the last hour, as the first process counts them; a second behind."""
        return self._last_hour if self._history is None else self._history.last_hour

    def waiting(self) -> tuple[int, float]:
        """(requests in the queues of all processes, seconds that the first of them has waited)."""
        count, longest_s = self._waiting()
        oldest = time.monotonic() - FRESH_S
        for said, heard_at in self._said.values():
            if heard_at >= oldest:
                count, longest_s = count + said.requests_waiting, max(longest_s, said.longest_wait_s)
        return count, longest_s

    async def others(self) -> list[tuple[int, bytes]]:
        """(process, families of metrics) of each other one that answers within ANSWER_S; in their order."""
        answers: dict[int, bytes] = {}
        all_there = asyncio.Event()

        async def take(msg: Msg) -> None:
            said = codec.decode_as(GatewayProcess, msg.data)
            if said.metrics is not None and said.process != self.process:
                answers[said.process] = _unpacked(said.metrics)
            if len(answers) >= self._count - 1:
                all_there.set()

        if not self._bus.connected:
            return []
        inbox = self._bus.client.new_inbox()
        try:
            subscription = await self._bus.subscribe(inbox, take)
            try:
                await self._bus.publish(subjects.gateway_asks(self._group), AskGatewayProcess(), reply=inbox)
                async with asyncio.timeout(ANSWER_S):
                    await all_there.wait()
            finally:
                with contextlib.suppress(nats.errors.Error, OSError):
                    await subscription.unsubscribe()
        except (LlmlbError, TimeoutError) as error:
            log.debug("siblings_did_not_answer answers=%d error=%r", len(answers), error)
        return sorted(answers.items())

    # Telling

    async def start(self) -> None:
        """Begin to tell and to listen. The first process is heard by then, if it says anything within 2 s."""
        await self._bus.wait_up()
        await self._bus.subscribe(subjects.gateway_says(self._group), self._on_said)
        await self._bus.subscribe(subjects.gateway_asks(self._group), self._on_ask)
        self._background.forever(self._tell, "tell")
        if self._history is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_S):
                    await self._heard.wait()

    async def close(self) -> None:
        await self._background.close()

    async def _tell(self) -> None:
        while True:
            with contextlib.suppress(LlmlbError):  # the bus is away, and nobody listens
                await self._bus.publish(subjects.gateway_says(self._group), self._now())
            await asyncio.sleep(EVERY_S)

    def _now(self, metrics: str | None = None) -> GatewayProcess:
        waiting, longest_wait_s = self._waiting()
        return GatewayProcess(
            process=self.process,
            requests_waiting=waiting,
            longest_wait_s=longest_wait_s,
            requests_last_hour=None if self._history is None else self._history.last_hour,
            metrics=metrics,
        )

    async def _on_said(self, msg: Msg) -> None:
        said = codec.decode_as(GatewayProcess, msg.data)
        if said.process == self.process:
            return
        self._said[said.process] = said, time.monotonic()
        if said.requests_last_hour is not None:
            self._last_hour = said.requests_last_hour
            self._heard.set()

    async def _on_ask(self, msg: Msg) -> None:
        if self.own is not None and msg.reply:
            await self._bus.publish(msg.reply, self._now(_packed(await self.own())))


def _packed(families: bytes) -> str:
    return base64.b64encode(zlib.compress(families, 1)).decode()


def _unpacked(text: str) -> bytes:
    """Raises BadMessage."""
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text), METRICS_MAX)
    except (binascii.Error, zlib.error) as error:
        raise BadMessage("metrics that can't be read", detail=str(error)) from error
