"""How far the pulls of a node are: kept here, and told on the bus.

The bus keeps the last value of each task, so a node that starts again knows what it pulled before. A bus that is away
costs nothing but news: what has changed meanwhile is told when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import nats.errors
import nats.js.errors

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BadMessage, BusError, DeadlineExceeded
from llmlb.bus.messages.pulls import PullProgress
from llmlb.bus.streams import ensure_streams

log = logging.getLogger("llmlb.node.pull.reports")

EVERY_S = 0.25
"""Between two messages of a task, at least."""
SETTLE_RETRY_S = 1.0
KEPT = 100
"""Tasks that are over and still listed."""
MOST_RESTORED = 1_000
FINAL = frozenset({"completed", "failed", "cancelled"})


def is_over(progress: PullProgress) -> bool:
    return progress.status in FINAL


def ended(known: PullProgress, status: str) -> PullProgress:
    """The last word on a task, with this ``status``."""
    update = {"status": status, "phase": "done", "speed_bps": 0, "eta_s": None, "note": None, "sent_at": time.time()}
    return known.model_copy(update=update)


class Reports:
    """The last progress of each task. All methods on the loop."""

    def __init__(self, bus: Bus, node_id: str) -> None:
        self._bus, self._node_id = bus, node_id
        self._tasks: dict[str, PullProgress] = {}
        self._untold: set[str] = set()
        self._news = asyncio.Event()
        """Something is not told yet."""

    def get(self, task_id: str) -> PullProgress | None:
        return self._tasks.get(task_id)

    def all(self) -> tuple[PullProgress, ...]:
        """Running ones and the last of those that are over, newest first."""
        return tuple(sorted(self._tasks.values(), key=lambda task: task.started_at, reverse=True))

    def put(self, progress: PullProgress) -> None:
        """Take note; it is told within 0.25 s."""
        self._tasks[progress.task_id] = progress
        self._untold.add(progress.task_id)
        self._news.set()
        if is_over(progress):
            over = [task for task in self.all() if is_over(task)]
            for old in over[KEPT:]:
                del self._tasks[old.task_id]
                self._untold.discard(old.task_id)

    def tell_again(self) -> None:
        """The bus was away, and may be another one: tell of everything that runs."""
        self._untold.update(task.task_id for task in self._tasks.values() if not is_over(task))
        self._news.set()

    async def run(self) -> None:
        """Tell what changes, without end."""
        while True:
            await self._news.wait()
            await asyncio.sleep(EVERY_S)
            await self.flush()
            if not self._untold:  # else the bus is away, or more came meanwhile
                self._news.clear()

    async def flush(self) -> None:
        """Tell now what is not told yet. A bus that is away is no error."""
        for task_id in list(self._untold):
            self._untold.discard(task_id)
            if (progress := self._tasks.get(task_id)) is None:
                continue
            try:
                await self._bus.publish(subjects.progress(self._node_id, task_id), _now(progress))
            except BusError:
                self._untold.add(task_id)

    async def settle(self, progress: PullProgress) -> None:
        """Return when this last word of a task is stored on the bus, or another began; waits for a bus that is away."""
        subject = subjects.progress(self._node_id, progress.task_id)
        while self._tasks.get(progress.task_id) is progress:
            try:
                await self._bus.publish_stored(subject, _now(progress))
                self._untold.discard(progress.task_id)
                return
            except (BusError, DeadlineExceeded) as error:
                log.debug("progress_not_stored task=%s error=%s", progress.task_id, error.message)
            await asyncio.sleep(SETTLE_RETRY_S)
            await self._bus.wait_up()

    async def restore(self) -> None:
        """Read what was told in an earlier life. Waits for the bus, and goes on until it worked."""
        said = False
        while True:
            await self._bus.wait_up()
            try:
                await self._restore()
                return
            except (nats.errors.Error, OSError, TimeoutError) as error:
                if not said:
                    mapped = map_nats_error(error)
                    log.warning("tasks_not_restored error=%r detail=%s", mapped.message, mapped.detail)
                said = True
            await asyncio.sleep(SETTLE_RETRY_S)

    async def _restore(self) -> None:
        await ensure_streams(self._bus.client, replicas=self._bus.settings.bus_replicas)
        js = self._bus.client.jetstream()
        info = await js.stream_info(subjects.STREAM_PROGRESS, subjects_filter=subjects.node_progress(self._node_id))
        found = []
        for subject in list(info.state.subjects or {})[:MOST_RESTORED]:
            with contextlib.suppress(nats.js.errors.NotFoundError, BadMessage):
                msg = await js.get_last_msg(subjects.STREAM_PROGRESS, subject, direct=bool(info.config.allow_direct))
                found.append(codec.decode_as(PullProgress, msg.data or b""))
        kept = 0
        for progress in sorted(found, key=lambda task: task.started_at, reverse=True):
            kept += is_over(progress)
            if not is_over(progress) or kept <= KEPT:
                self._tasks.setdefault(progress.task_id, progress)


def _now(progress: PullProgress) -> PullProgress:
    """With the time it is told."""
    return progress.model_copy(update={"sent_at": time.time()})
