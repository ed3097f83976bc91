"""The pulls of all nodes as they told last: heard on the bus, and read from its stream after a start or an outage."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BadMessage, LlmlbError
from llmlb.bus.messages.pulls import PullProgress
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.router.hub.board")

FIRST_READ_S = 3.0
READ_S = 30.0
AGAIN_S = 2.0
MOST_TASKS = 20_000
"""Kept in memory; of those that are over, the oldest are forgotten first."""
FINAL = frozenset({"completed", "failed", "cancelled"})

Key = tuple[str, str]
"""Node id, task id."""


def is_over(task: PullProgress) -> bool:
    return task.status in FINAL


class TaskBoard:
    """:meth:`start` once the bus is up. ``on_change`` are called with each progress, on the loop."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._tasks: dict[Key, PullProgress] = {}
        self._heard: set[Key] | None = None
        """What was told while the stream is read, which is newer."""
        self._poke = asyncio.Event()
        self._background = Background("board")
        self.on_change: list[Callable[[PullProgress], None]] = []

    async def start(self) -> None:
        """Listen; read what was told before within 3 s, or behind it."""
        await self._bus.subscribe(subjects.all_progress(), self._on_message)
        read = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_S):
                read = await self._read()
        self._bus.on_up(self._back_again)
        if not read:
            self._poke.set()
        self._background.forever(self._run, "read")

    async def close(self) -> None:
        await self._background.close()

    def get(self, node_id: str, task_id: str) -> PullProgress | None:
        return self._tasks.get((node_id, task_id))

    def all(self) -> list[PullProgress]:
        """Newest first."""
        return sorted(self._tasks.values(), key=lambda task: task.started_at, reverse=True)

    def put(self, task: PullProgress) -> None:
        """This is stored on the bus now."""
        key = task.node_id, task.task_id
        if self._heard is not None:
            self._heard.add(key)
        self._tasks[key] = task
        if len(self._tasks) > MOST_TASKS:
            self._forget_some()
        for callback in self.on_change:
            callback(task)

    def _forget_some(self) -> None:
        over = [key for key, task in self._tasks.items() if is_over(task)] or list(self._tasks)
        over.sort(key=lambda key: self._tasks[key].started_at)
        for key in over[: MOST_TASKS // 10]:
            del self._tasks[key]

    async def _on_message(self, msg: Msg) -> None:
        self.put(self._checked(msg))

    @staticmethod
    def _checked(msg: Msg) -> PullProgress:
        """Raises BadMessage."""
        task = codec.decode_as(PullProgress, msg.data)
        try:
            subject = subjects.progress(task.node_id, task.task_id)
        except ValueError as error:
            raise BadMessage("a progress with an id that is none") from error
        if msg.subject != subject:
            raise BadMessage("a progress on the subject of another task")
        return task

    async def _back_again(self) -> None:
        self._poke.set()

    async def _run(self) -> None:
        while True:
            await self._poke.wait()
            self._poke.clear()
            await self._bus.wait_up()
            if not await self._read():
                await asyncio.sleep(AGAIN_S)
                self._poke.set()

    async def _read(self) -> bool:
        """The last of each task, from the stream. False: it has to be tried again."""
        self._heard = set()
        try:
            async with asyncio.timeout(READ_S):
                for task in await self._last_of_each():
                    key = task.node_id, task.task_id
                    if key not in self._heard and self._tasks.get(key) != task:
                        self.put(task)
        except nats.js.errors.NotFoundError:
            return False  # the stream is about to be made
        except (nats.errors.Error, OSError, TimeoutError, LlmlbError) as error:
            detail = error.message if isinstance(error, LlmlbError) else map_nats_error(error).message
            log.info("tasks_not_read error=%r", detail)
            return False
        finally:
            self._heard = None
        return True

    async def _last_of_each(self) -> list[PullProgress]:
        found: list[PullProgress] = []
        done = asyncio.Event()

        async def take(msg: Msg) -> None:
            with contextlib.suppress(BadMessage):
                found.append(self._checked(msg))
            if msg.metadata.num_pending == 0:
                done.set()

        config = ConsumerConfig(deliver_policy=DeliverPolicy.LAST_PER_SUBJECT, ack_policy=AckPolicy.NONE)
        subscription = await self._bus.client.jetstream().subscribe(
            subjects.all_progress(), stream=subjects.STREAM_PROGRESS, cb=take, config=config, manual_ack=True
        )
        try:
            info = await subscription.consumer_info()
            # Delivered already, or nothing there: then no message will say that it is the last.
            if info.num_pending == 0 and (info.delivered is None or info.delivered.consumer_seq == 0):
                done.set()
            await done.wait()
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        return found
