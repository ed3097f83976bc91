"""How many requests the last hour had, out of the stream of request records: nothing to lose at a restart."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import nats.errors
import nats.js.errors

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.router.history")

REFRESH_S = 1.0
HOUR = timedelta(hours=1)


class RequestCount:
    """Keeps :attr:`last_hour` up to date, a second behind at most while the bus is there."""

    def __init__(self, bus: Bus) -> None:
        self.last_hour = 0
        self._bus = bus
        self._background = Background("requests")

    def start(self) -> None:
        self._background.start(self._run(), "count")

    async def close(self) -> None:
        await self._background.close()

    async def _run(self) -> None:
        while True:
            if self._bus.connected:
                try:
                    self.last_hour = await self._count()
                except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
                    log.debug("request_count_failed error=%r", error)
            await asyncio.sleep(REFRESH_S)

    async def _count(self) -> int:
        """Numbers in the stream from the first record of the last hour to the newest one.

        One direct get with ``start_time`` finds the first (nats-server ≥ 2.11); numbers of a stream that only ages
        out have no holes. Raises nats.errors.Error.
        """
        since = (datetime.now(UTC) - HOUR).isoformat().replace("+00:00", "Z")
        question = {"batch": 1, "next_by_subj": subjects.all_request_records(), "start_time": since}
        client = self._bus.client
        first = await client.request(
            f"$JS.API.DIRECT.GET.{subjects.STREAM_REQUESTS}", json.dumps(question).encode(), timeout=2
        )
        headers = first.headers or {}
        if "Nats-Sequence" not in headers:
            return 0
        info = await client.jetstream().stream_info(subjects.STREAM_REQUESTS)
        return max(0, info.state.last_seq - int(headers["Nats-Sequence"]) + 1)
