"""The node's heartbeat: each second, and at once when something changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import time
import uuid
from collections.abc import Callable

import llmlb
from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusError
from llmlb.bus.machine import machine_digest
from llmlb.bus.messages.nodes import Heartbeat, LoadedModel
from llmlb.bus.tasks import Background
from llmlb.node.engine.pool import Pool
from llmlb.node.hardware import Hardware, HardwareReading
from llmlb.node.store.catalog import Catalog

log = logging.getLogger("llmlb.node.heartbeat")

INTERVAL_S = 1.0
FIRST_INTERVAL_S = 0.25
FIRST_BEATS = 4
"""A router that starts together with the node hears one of these, not only the one a second later."""
LEAST_GAP_S = 0.05
"""Between two heartbeats, so that a burst of changes is one of them."""


class Heart:
    """Sends the heartbeats of one node. A bus that is away is waited for; no heartbeat is ever queued up."""

    def __init__(
        self,
        bus: Bus,
        node_id: str,
        hardware: Hardware,
        catalog: Catalog,
        pool: Pool,
        *,
        load: Callable[[], int],
    ) -> None:
        self.draining = False
        self.reading: HardwareReading = hardware.read()
        self._bus = bus
        self._node_id = node_id
        self._hardware = hardware
        self._catalog = catalog
        self._pool = pool
        self._load = load
        self._instance = uuid.uuid4().hex[:12]
        self._started = time.monotonic()
        self._gateway = ""
        self._soon = asyncio.Event()
        self._background = Background("heart")

    def start(self, gateway: str) -> None:
        self._gateway = gateway
        self._background.start(self._run(), "beat")

    def beat_soon(self) -> None:
        """Something changed: do not wait for the next second."""
        self._soon.set()

    async def _run(self) -> None:
        beats = 0
        while True:
            beats += 1
            self._soon.clear()
            self.reading = await asyncio.to_thread(self._hardware.read)
            await self.beat()
            await asyncio.sleep(LEAST_GAP_S)
            pause = FIRST_INTERVAL_S if beats < FIRST_BEATS else INTERVAL_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause - LEAST_GAP_S):
                    await self._soon.wait()

    def message(self, *, leaving: bool = False) -> Heartbeat:
        """The heartbeat as of now."""
        models = len(self._catalog.models())
        return Heartbeat(
            node_id=self._node_id,
            instance=self._instance,
            version=llmlb.__version__,
            name=platform.node(),
            machine=machine_digest(),
            gateway=self._gateway,
            uptime_s=time.monotonic() - self._started,
            draining=self.draining,
            leaving=leaving,
            inventory=self._catalog.inventory,
            models_ready=models,
            models_total=models,
            loaded=tuple(
                LoadedModel(
                    name=loaded.name,
                    ready=loaded.is_ready,
                    slots=loaded.slots,
                    same_answer=loaded.capabilities is not None and loaded.capabilities.same_answer,
                    running=len(loaded.handles),
                )
                for loaded in self._pool.loaded()
            ),
            running=self._load(),
            gpus=self.reading.gpus,
            cpu_percent=self.reading.cpu_percent,
            memory_total_bytes=self.reading.memory_total_bytes,
            memory_available_bytes=self.reading.memory_available_bytes,
        )

    async def beat(self, *, leaving: bool = False) -> None:
        """Send one now. A bus that is away is no error: the next one tells everything again."""
        with contextlib.suppress(BusError):
            await self._bus.publish(subjects.heartbeat(self._node_id), self.message(leaving=leaving))

    async def stop(self) -> None:
        """Send the last one."""
        await self._background.close()
        self.draining = True
        await self.beat(leaving=True)
