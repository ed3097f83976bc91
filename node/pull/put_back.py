"""Pulls that are not over and not on the bus any more: their stream was lost, and they are put there again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Container, Mapping

import nats.errors

from llmlb.bus.connection import Bus
from llmlb.bus.errors import LlmlbError, PullFailed
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.models import RegisteredModel
from llmlb.bus.messages.pulls import PullProgress, PullTask
from llmlb.bus.work_queue import WorkQueue
from llmlb.node.pull.reports import Reports, ended, is_over

log = logging.getLogger("llmlb.node.pull.put_back")

READ_AGAIN_S = 1.0


async def _nothing() -> Mapping[str, RegisteredModel]:
    return {}


class PutBack:
    """``active``: the ids of the tasks that are worked, or wait for their turn."""

    def __init__(self, bus: Bus, queue: WorkQueue, reports: Reports, active: Container[str]) -> None:
        self._bus, self._queue, self._reports, self._active = bus, queue, reports, active
        self.registered: Callable[[], Awaitable[Mapping[str, RegisteredModel]]] = _nothing
        """What is registered for this node, by the id of its pull. May raise nats.errors.Error, LlmlbError."""

    async def run(self) -> None:
        """Wait until all that is on the bus is here, and put back what is missing."""
        await self._queue.wait_all_taken()
        if not self._lost():
            return
        records = await self._records()
        for known in self._lost():
            record = records.get(known.task_id) if known.registered_at is not None else None
            if record is None and known.registered_at is not None and known.origin == "sync":
                # Only the registry wanted it, and does not any more: which files were meant is not known.
                why = PullFailed("the bus lost this pull, and the registration that it was for is gone")
                self._reports.put(ended(known, "failed").model_copy(update={"error": WireError.of(why)}))
                log.warning("pull_not_put_back task=%s model=%s", known.task_id, known.model)
                continue
            log.warning("pull_put_back task=%s model=%s", known.task_id, known.model)
            with contextlib.suppress(LlmlbError):
                await self._queue.put(_task(known, record))

    def _lost(self) -> list[PullProgress]:
        return [known for known in self._reports.all() if not is_over(known) and known.task_id not in self._active]

    async def _records(self) -> Mapping[str, RegisteredModel]:
        """As soon as the bus tells."""
        while True:
            try:
                return await self.registered()
            except (nats.errors.Error, OSError, TimeoutError, LlmlbError) as error:
                log.debug("registry_not_read error=%r", error)
            await asyncio.sleep(READ_AGAIN_S)
            await self._bus.wait_up()


def _task(known: PullProgress, record: RegisteredModel | None) -> PullTask:
    """With the files that are registered for it now. What only a user wants is pulled as the hub has it."""
    return PullTask(
        task_id=known.task_id,
        model=known.model,
        origin=known.origin,
        manifest=None if record is None else record.manifest,
        registered_at=None if record is None else record.registered_at,
    )
