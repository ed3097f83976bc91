"""Pulls that an administrator asks for: put on the bus for each node, and cancelled. The router fetches nothing.

A task is in the work queue of its node, so one for a node that is away waits for it. What is told of a task before its
node does so is written behind the node's back only where the node has not said anything newer.
"""

from __future__ import annotations

import logging
import time

import nats.errors
import nats.js.errors

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import Conflict, NodeLost
from llmlb.bus.hub_names import task_id_of, title_of, wanted_of
from llmlb.bus.messages.models import RegisteredModel
from llmlb.bus.messages.pulls import PullProgress, PullTask
from llmlb.router.hub.board import TaskBoard, is_over
from llmlb.router.node_rpc import NodeRpc

log = logging.getLogger("llmlb.router.hub.downloads")

STORE_S = 5.0
WRONG_LAST = (10071, 10164)
"""Source: nats-server, errors.json: JSStreamWrongLastSequence(Constant)Err."""
_ERRORS = (nats.errors.Error, OSError, TimeoutError)


def task_of(record: RegisteredModel) -> str:
    """The id of a registered model's pull, the same on each node."""
    return task_id_of(wanted_of(record.name, record.file))


class Downloads:
    """Its methods raise BusError and DeadlineExceeded."""

    def __init__(self, bus: Bus, board: TaskBoard) -> None:
        self._bus, self._board = bus, board

    async def start(self, node_id: str, record: RegisteredModel) -> tuple[PullProgress, bool]:
        """A node shall fetch a model now. Its task, and whether it ran already."""
        task_id = task_of(record)
        known = self._board.get(node_id, task_id)
        # One that is told of and not on the bus any more would wait for ever.
        if known is not None and not is_over(known) and (known.status != "pending" or await self._queued(node_id)):
            return known, True
        before = await self._last(node_id, task_id)
        task = PullTask(
            task_id=task_id,
            model=title_of(wanted_of(record.name, record.file)),
            origin="sync",
            manifest=record.manifest,
            registered_at=record.registered_at,
        )
        await self._bus.publish_stored(subjects.pull(node_id), task, timeout_s=STORE_S)
        log.info("download_asked model=%s node=%s task=%s", record.name, node_id[:12], task_id)
        told = PullProgress(
            task_id=task_id,
            node_id=node_id,
            model=task.model,
            origin="sync",
            status="pending",
            phase="waiting",
            total_bytes=0 if record.manifest is None else record.manifest.size_bytes,
            registered_at=record.registered_at,
            started_at=task.sent_at,
        )
        if await self._tell(told, before):
            self._show(told, known)
        return self._board.get(node_id, task_id) or told, False

    async def cancel(self, known: PullProgress, *, purge: bool) -> PullProgress:
        """Give a task up; its last state. Raises Conflict when it is over, or being installed."""
        try:
            done = await NodeRpc(self._bus, known.node_id).cancel_task(known.task_id, purge=purge)
        except NodeLost:
            return await self.cancel_away(known)
        self._board.put(done.task)
        return done.task

    async def cancel_away(self, known: PullProgress) -> PullProgress:
        """As :meth:`cancel`, for a node that does not answer: it finds its task cancelled when it is back."""
        if is_over(known):
            raise Conflict(f"the download of {known.model} is over: {known.status}", param="task")
        before = await self._last(known.node_id, known.task_id)
        update = {"status": "cancelled", "phase": "done", "speed_bps": 0, "eta_s": None, "note": None}
        told = known.model_copy(update={**update, "sent_at": time.time()})
        if not await self._tell(told, before):
            raise Conflict("the node is back: it told something newer just now; try again", param="task")
        self._show(told, known)
        return told

    def _show(self, told: PullProgress, before: PullProgress | None) -> None:
        """What is stored is shown at once. Not when the bus brought something meanwhile: that, or what is newer."""
        if self._board.get(told.node_id, told.task_id) is before:
            self._board.put(told)

    async def _queued(self, node_id: str) -> bool:
        """Whether anything is in a node's queue."""
        try:
            info = await self._bus.client.jetstream().stream_info(
                subjects.STREAM_PULLS, subjects_filter=subjects.pull(node_id)
            )
        except _ERRORS as error:
            raise map_nats_error(error) from error
        return bool(info.state.subjects)

    async def _last(self, node_id: str, task_id: str) -> int:
        """The number of what was told of a task last; 0: nothing was."""
        try:
            found = await self._bus.client.jetstream().get_last_msg(
                subjects.STREAM_PROGRESS, subjects.progress(node_id, task_id)
            )
        except nats.js.errors.NotFoundError:
            return 0
        except _ERRORS as error:
            raise map_nats_error(error) from error
        return found.seq or 0

    async def _tell(self, told: PullProgress, before: int) -> bool:
        """Store a progress, unless the node told something since ``before``."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(before)}
        subject = subjects.progress(told.node_id, told.task_id)
        try:
            await self._bus.client.jetstream().publish(subject, codec.encode(told), timeout=STORE_S, headers=headers)
        except nats.js.errors.APIError as error:
            if error.err_code in WRONG_LAST:
                return False
            raise map_nats_error(error) from error
        except _ERRORS as error:
            raise map_nats_error(error) from error
        return True
