"""The node's heartbeat: each second, and at once when something changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import platform
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import llmlb
from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusError
from llmlb.bus.join import digest_of, proof_of
from llmlb.bus.machine import machine_digest
from llmlb.bus.messages.nodes import Heartbeat, LoadedModel
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background
from llmlb.node.claim import Claim
from llmlb.node.engine.pool_interface import Loaded, Pool
from llmlb.node.hardware import Hardware, HardwareReading, Memory, disk, engines
from llmlb.node.speed import Speeds
from llmlb.node.store.catalog import Catalog

log = logging.getLogger("llmlb.node.heartbeat")

INTERVAL_S = 1.0
FIRST_INTERVAL_S = 0.25
FIRST_BEATS = 4
"""A router that starts together with the node hears one of these, not only the one a second later."""
PAUSE_S = 3.0
"""Silence after which routers take a node for suspect: what beat before it does not count as beating."""
READ_S = 1.0
"""A reading that takes longer, as on a disk or a driver that hangs, is not waited for: the last ones are told again."""
WHOLE_S = 5.0
"""Between two looks at the disk, and for a driver where none is: on another thread, so some 0.5 ms of CPU time each. A
machine with a GPU is read as a whole each time."""
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
        assigned: Callable[[], tuple[int, int]] = lambda: (0, 0),
        speeds: Speeds | None = None,
        pulling: Callable[[], tuple[str, ...]] = tuple,
        approved: Callable[[], bool] = lambda: False,
    ) -> None:
        """``assigned``: (models that are registered for the node and whole on its disk, models registered for it)."""
        settings: Settings = bus.settings
        self.draining = False
        self.reading: HardwareReading = hardware.read()
        self._bus = bus
        self._node_id = node_id
        self._hardware = hardware
        self._catalog = catalog
        self._pool = pool
        self._load = load
        self._assigned = assigned
        self._speeds = speeds or Speeds()
        self._pulling = pulling
        self._approved = approved
        self._labels = tuple(label for label in settings.node_labels.split(",") if label)
        token = settings.join_token
        self._proof = None if token is None else proof_of(digest_of(token), node_id)
        self._instance = uuid.uuid4().hex[:12]
        advice = f"Delete the file {settings.home / 'node_id'} where the node is to be a new one, and start it again"
        self.claim = Claim(bus, node_id, self._instance, platform.node(), advice)
        """Whether the id is this node's own."""
        self.claim.beating_s = self._beating_s
        self._beating_since: float | None = None
        self._last_beat = 0.0
        self._silent = False
        self._started = time.monotonic()
        self._folder = settings.home / "models"
        self._disk = disk(self._folder)
        self._gateway = ""
        self._soon = asyncio.Event()
        self._background = Background("heart")
        self._thread = ThreadPoolExecutor(1, "heartbeat")
        self._pending: asyncio.Future[tuple[HardwareReading, tuple[int | None, int | None]]] | None = None
        """The reading under way."""
        self._whole_at = -math.inf

    def _beating_s(self) -> float:
        return 0.0 if self._beating_since is None else time.monotonic() - self._beating_since

    def silence(self) -> None:
        """Not one heartbeat more, not even the last: another node has this id."""
        self._silent = True

    def start(self, gateway: str) -> None:
        self._gateway = gateway
        self._background.forever(self._run, "beat")

    def beat_soon(self) -> None:
        """Something changed: do not wait for the next second."""
        self._soon.set()

    async def _run(self) -> None:
        beats = 0
        while True:
            beats += 1
            self._soon.clear()
            await self._read()
            await self.beat()
            self._pool.look(_spare(self.reading))
            least = time.monotonic() + LEAST_GAP_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_INTERVAL_S if beats < FIRST_BEATS else INTERVAL_S):
                    await self._soon.wait()
            if (gap_s := least - time.monotonic()) > 0:
                await asyncio.sleep(gap_s)

    async def _read(self) -> None:
        """New readings, by a thread of their own: threads that others use may be busy with a copy for minutes."""
        if self._pending is None:
            now = time.monotonic()
            if not self._hardware.has_driver and now - self._whole_at < WHOLE_S:
                self.reading = self._hardware.light()
                return
            self._whole_at = now
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._thread, lambda: (self._hardware.read(), disk(self._folder)))
            self._pending = work
        if (await asyncio.wait([self._pending], timeout=READ_S))[0]:
            done, self._pending = self._pending, None
            self.reading, self._disk = done.result()

    def message(self, *, leaving: bool = False) -> Heartbeat:
        """The heartbeat as of now."""
        ready, total = self._assigned()
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
            models_ready=ready,
            models_total=total,
            loaded=tuple(self._loaded(loaded) for loaded in self._pool.loaded()),
            pulling=self._pulling(),
            labels=self._labels,
            engines=engines(),
            disk_free_bytes=self._disk[0],
            disk_total_bytes=self._disk[1],
            join_token=None if self._approved() else self._proof,
            beating_s=self._beating_s(),
            problem=self.claim.problem(),
            running=self._load(),
            gpus=self.reading.gpus,
            cpu_percent=self.reading.cpu_percent,
            memory_total_bytes=self.reading.memory_total_bytes,
            memory_available_bytes=self.reading.memory_available_bytes,
        )

    def _loaded(self, loaded: Loaded) -> LoadedModel:
        speed = self._speeds.of(loaded.name)
        return LoadedModel(
            name=loaded.name,
            ready=loaded.is_ready,
            slots=loaded.slots,
            same_answer=loaded.capabilities is not None and loaded.capabilities.same_answer,
            running=len(loaded.handles),
            prefill_tps=speed.prefill_tps,
            decode_tps=speed.decode_tps,
            load_s=loaded.load_s,
        )

    async def beat(self, *, leaving: bool = False) -> None:
        """Send one now. A bus that is away is no error: the next one tells everything again."""
        if self._silent:
            return
        with contextlib.suppress(BusError):
            await self._bus.publish(subjects.heartbeat(self._node_id), self.message(leaving=leaving))
            now = time.monotonic()
            if self._beating_since is None or now - self._last_beat >= PAUSE_S:
                self._beating_since = now
            self._last_beat = now

    async def stop(self) -> None:
        """Send the last one."""
        await self._background.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.draining = True
        await self.beat(leaving=True)


def _spare(reading: HardwareReading) -> Memory | None:
    total, available = reading.memory_total_bytes, reading.memory_available_bytes
    return None if total is None or available is None else Memory(total, available)
