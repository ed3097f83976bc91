"""The pulls of a node as tasks on the bus: asked for, worked, watched and cancelled.

A task is an item of the node's work queue until it is over, so it goes on after whatever dies. One task an asked-for
model; some at the same time (``LLMLB_PULL_PARALLEL``), one at a time of a repo, as two would write the same files.

The order at the end matters: the model is in place, the catalog knows it, the last progress is stored on the bus, the
item is acked. Killed in between, the task comes again and finds what is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import (
    BadMessage,
    BusDown,
    Cancelled,
    Conflict,
    InvalidRequest,
    LlmlbError,
    ModelUnknown,
    PullFailed,
)
from llmlb.bus.hub_names import Wanted, parse_name, task_id_of, title_of
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.models import ModelManifest
from llmlb.bus.messages.pulls import (
    CancelTask,
    ListTasks,
    PullOrigin,
    PullProgress,
    PullStarted,
    PullTask,
    StartPull,
    TaskCancelled,
    TaskList,
)
from llmlb.bus.tasks import Background
from llmlb.bus.work_queue import WorkQueue
from llmlb.node.pull.job import Means, PullJob
from llmlb.node.pull.put_back import PutBack
from llmlb.node.pull.reports import Reports, ended, is_over
from llmlb.node.store.installed import Installed

log = logging.getLogger("llmlb.node.pull.tasks")

PUT_S = 2.0
"""To store a task, so that who asks hears of a failure before his own 5 s are over."""
RESTORE_S = 2.0
STOP_S = 1.0
"""A download may take so long to end when the node ends; then it is left to its threads, which die with the process.
What it has written counts all the same, as after kill -9."""


@dataclass(slots=True)
class _Active:
    """A task that is worked, or waits for its turn."""

    task: PullTask
    wanted: Wanted
    job: PullJob
    runner: asyncio.Task[Installed | LlmlbError] | None = None
    cancelled: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Pulls:
    """All pulls of a node. :meth:`start` once the bus was opened. ``changed`` is awaited when a model was installed."""

    def __init__(
        self, bus: Bus, node_id: str, means: Means, *, parallel: int, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._bus, self._node_id, self._means, self._changed = bus, node_id, means, changed
        self._endpoint = means.hub.endpoint
        self._reports = Reports(bus, node_id)
        self._queue = WorkQueue(
            bus,
            stream=subjects.STREAM_PULLS,
            subject=subjects.pull(node_id),
            consumer=subjects.pull_consumer(node_id),
            handler=self._on_item,
        )
        self._background = Background("pulls")
        self._active: dict[str, _Active] = {}
        self._turns = asyncio.Semaphore(parallel)
        self._repos: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._staging: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        """Of a repo: held by who works on its staged files, and not by who waits for a turn."""
        self._restored = asyncio.Event()
        self._closing = False
        self.on_over: Callable[[], None] = lambda: None
        """Called when a task is over, and when those of an earlier life are known."""
        self.put_back = PutBack(bus, self._queue, self._reports, self._active)

    def start(self) -> None:
        """Go on with what is on the bus, and take more."""
        self._queue.start()
        self._background.start(self._restore(), "restore")
        self._background.start(self._reports.run(), "reports")
        self._bus.on_up(self._back_again)

    async def _restore(self) -> None:
        await self._reports.restore()
        self._restored.set()
        self.on_over()
        await self.put_back.run()
        busy = {active.wanted.repo for active in self._active.values()}
        for left in await asyncio.to_thread(self._means.store.leftovers):
            if left.repo not in busy:
                log.warning("pull_leftover repo=%s bytes=%d kept=true", left.repo, left.bytes)

    async def _back_again(self) -> None:
        self._reports.tell_again()
        if self._restored.is_set() and not self._closing:
            self._background.start(self.put_back.run(), "pick_up")

    async def close(self) -> None:
        """End what runs, keeping what is on the disk and the tasks on the bus. Within some seconds. Never raises."""
        self._closing = True
        working = list(self._active.values())
        runners = [active.runner for active in working if active.runner is not None]
        for _ in range(2):  # the second time a download does not wait for its threads
            for runner in runners:
                runner.cancel()
            if runners:
                await asyncio.wait(runners, timeout=STOP_S)
        for active in working:
            if (known := self._reports.get(active.task.task_id)) is not None and not is_over(known):
                rests = {"status": "pending", "phase": "waiting", "speed_bps": 0, "eta_s": None}
                self._reports.put(known.model_copy(update={**rests, "note": "the node has ended; it goes on with it"}))
        await self._reports.flush()
        await self._queue.close()
        await self._background.close()

    # What others ask

    def is_busy(self, repo: str) -> bool:
        """True while a pull of this repo (``owner/model``) runs or waits."""
        return any(active.wanted.repo.lower() == repo.lower() for active in self._active.values())

    def find(self, wanted: Wanted) -> PullProgress | None:
        """The task of what is wanted, running or over."""
        return self._reports.get(task_id_of(wanted))

    def tasks(self) -> tuple[PullProgress, ...]:
        return self._reports.all()

    @property
    def restored(self) -> bool:
        """True once the tasks of an earlier life are known."""
        return self._restored.is_set()

    async def begin(
        self,
        text: str,
        origin: PullOrigin,
        *,
        manifest: ModelManifest | None = None,
        registered_at: float | None = None,
    ) -> PullStarted:
        """Store a task on the bus, or attach to the one that runs. ``manifest``: its files, when they are known.

        Raises InvalidRequest, BusError, DeadlineExceeded.
        """
        wanted = parse_name(text, self._endpoint)
        known = self.find(wanted)
        attached = known is not None and not is_over(known)
        if attached and known is not None and origin in ("sync", known.origin):
            return PullStarted(task=known, attached=True)
        task = PullTask(
            task_id=task_id_of(wanted),
            model=title_of(wanted),
            origin=origin,
            manifest=manifest,
            registered_at=registered_at,
        )
        await self._queue.put(task, timeout_s=PUT_S)
        if origin == "user" and (active := self._active.get(task.task_id)) is not None:
            active.job.claim()
        now = self._reports.get(task.task_id)
        if now is None or (is_over(now) and now.started_at != task.sent_at):
            now = self._fresh(task)
            self._reports.put(now)
        return PullStarted(task=now, attached=attached)

    async def _until_restored(self) -> None:
        """Just after the start the tasks of an earlier life are not known yet. Raises BusDown when that lasts."""
        try:
            async with asyncio.timeout(RESTORE_S):
                await self._restored.wait()
        except TimeoutError as error:
            raise BusDown("the bus has not told yet which pulls this node has") from error

    async def pull(self, request: StartPull) -> PullStarted:
        parse_name(request.model, self._endpoint)
        await self._until_restored()
        return await self.begin(request.model, "user")

    async def list_tasks(self, request: ListTasks) -> TaskList:
        await self._until_restored()
        if request.task_id is None:
            return TaskList(tasks=self._reports.all())
        return TaskList(tasks=(self._named(request.task_id),))

    async def cancel_task(self, request: CancelTask) -> TaskCancelled:
        await self._until_restored()
        known = self._named(request.task)
        if not is_over(known):
            known = await self.cancel(known.task_id)
        elif not request.purge or known.status == "completed":
            raise Conflict(f"the pull of {known.model} is over: {known.status}", param="task")
        repo = parse_name(known.model, self._endpoint).repo
        if request.purge:
            await self._purge(known, repo)
        left = await asyncio.to_thread(self._means.store.leftovers)
        kept = sum(each.bytes for each in left if each.repo.lower() == repo.lower())
        return TaskCancelled(task=known, kept_bytes=kept)

    async def _purge(self, known: PullProgress, repo: str) -> None:
        """Drop what a task that is over has fetched, and nothing that another pull of the repo goes on with.

        Nothing while one of them runs that does not know its files yet: it may use any of them. Where no other pull is
        known, all there is goes.
        """
        others = [
            task
            for task in self._reports.all()
            if task.status != "completed" and task.task_id != known.task_id and self._is_of(task, repo)
        ]
        theirs = {file.name for task in others for file in task.files}
        names = {file.name for file in known.files} - theirs if others else None
        staging = self._staging.setdefault(repo.lower(), asyncio.Lock())
        if not staging.locked():
            async with staging:
                await asyncio.to_thread(self._means.store.purge, repo, names)
        elif all(task.files for task in others if not is_over(task)):
            await asyncio.to_thread(self._means.store.purge, repo, names)

    def _is_of(self, task: PullProgress, repo: str) -> bool:
        return parse_name(task.model, self._endpoint).repo.lower() == repo.lower()

    async def cancel(self, task_id: str) -> PullProgress:
        """End a task that is not over, keeping its partial files. Raises Conflict when it is being installed."""
        active = self._active.get(task_id)
        if active is None:
            # Not here yet: when it comes it meets its end and is acked.
            known = self._reports.get(task_id)
            assert known is not None
            self._reports.put(ended(known, "cancelled"))
        else:
            if active.job.installing:
                raise Conflict("all bytes are there and the model is being installed: remove it then", param="task")
            active.cancelled = True
            if active.runner is not None:
                active.runner.cancel()
            await active.ended.wait()
        told = self._reports.get(task_id)
        assert told is not None
        return told

    def _named(self, text: str) -> PullProgress:
        """The task of an id, or of a name as for a pull. Raises ModelUnknown."""
        found = self._reports.get(text)
        if found is None:
            with contextlib.suppress(InvalidRequest):
                wanted = parse_name(text, self._endpoint)
                found = self.find(wanted) or self._only_one_of(wanted)
        if found is None:
            raise ModelUnknown(f"there is no pull '{text[:80]}' on this node", param="task")
        return found

    def _only_one_of(self, wanted: Wanted) -> PullProgress | None:
        """``owner/model`` stands for the pull of one of its files or quantizations, when just one is running."""
        if wanted.quant is not None or wanted.file is not None:
            return None
        running = [task for task, each in self._active.items() if each.wanted.repo == wanted.repo]
        return self._reports.get(running[0]) if len(running) == 1 else None

    # Working

    def _fresh(self, task: PullTask) -> PullProgress:
        return PullProgress(
            task_id=task.task_id,
            node_id=self._node_id,
            model=task.model,
            origin=task.origin,
            status="pending",
            phase="waiting",
            registered_at=task.registered_at,
            started_at=task.sent_at,
        )

    async def _on_item(self, data: bytes) -> None:
        """Work an item of the queue. Returns when it is over, and its last word is stored on the bus."""
        await self._restored.wait()
        try:
            sent = codec.decode_as(PullTask, data)
            wanted = parse_name(sent.model, self._endpoint)
        except (BadMessage, InvalidRequest) as error:
            log.warning("pull_refused error=%r", error.message)
            return
        task = sent.model_copy(update={"task_id": task_id_of(wanted), "model": title_of(wanted)})
        known = self._reports.get(task.task_id)
        if known is not None and is_over(known) and known.started_at == task.sent_at:
            await self._reports.settle(known)
            return
        if (other := self._active.get(task.task_id)) is not None:
            await self._join(other, task)
            return
        if known is None or known.started_at != task.sent_at:
            self._reports.put(self._fresh(task))
        await self._work(task, wanted)

    async def _join(self, other: _Active, task: PullTask) -> None:
        """The same task once more, from somebody else perhaps."""
        if task.origin == "user":
            other.job.claim()
        await other.ended.wait()
        told = self._reports.get(task.task_id)
        if told is not None and told.status == "completed" and told.name is not None:
            await asyncio.to_thread(self._means.store.add_origin, told.name, task.origin)

    async def _work(self, task: PullTask, wanted: Wanted) -> None:
        start = self._reports.get(task.task_id) or self._fresh(task)
        job = PullJob(self._means, wanted, start, self._reports.put, task.manifest)
        active = self._active[task.task_id] = _Active(task, wanted, job)
        log.info("pull_started task=%s model=%s origin=%s", task.task_id, task.model, task.origin)
        active.runner = self._background.start(self._run(active), f"run.{task.task_id}")
        try:
            await asyncio.wait([active.runner])
            if active.runner.cancelled() and not active.cancelled:
                raise asyncio.CancelledError  # the node ends: the task stays on the bus
            told = self._tell(active)
        finally:
            active.runner.cancel()
            if self._active.get(task.task_id) is active:
                del self._active[task.task_id]
            self._means.room.release(task.task_id)
            active.ended.set()
        self.on_over()
        await self._reports.settle(told)

    async def _run(self, active: _Active) -> Installed | LlmlbError:
        """The job, when it is its turn."""
        repo = active.wanted.repo
        lock = self._repos.setdefault(repo.lower(), asyncio.Lock())
        staging = self._staging.setdefault(repo.lower(), asyncio.Lock())
        try:
            async with lock, self._turns, staging:
                installed = await active.job.run()
                await self._changed()
                return installed
        except LlmlbError as error:
            return error
        except Exception as error:  # the top of a task: it must end, and say so
            log.exception("pull_broke task=%s", active.task.task_id)
            return PullFailed("the pull failed for an unknown cause", detail=repr(error))

    def _tell(self, active: _Active) -> PullProgress:
        """The last word on a task."""
        known = self._reports.get(active.task.task_id) or self._fresh(active.task)
        assert active.runner is not None
        result = Cancelled("") if active.runner.cancelled() else active.runner.result()
        if isinstance(result, Installed):
            told = ended(known, "completed").model_copy(update={"name": result.name, "alias": result.alias})
            log.info("pull_completed task=%s model=%s bytes=%d", known.task_id, result.name, known.total_bytes)
        elif isinstance(result, Cancelled):
            told = ended(known, "cancelled")
            log.info("pull_cancelled task=%s model=%s bytes=%d", known.task_id, known.model, known.downloaded_bytes)
        else:
            told = ended(known, "failed").model_copy(update={"error": WireError.of(result)})
            log.warning("pull_failed task=%s error=%r detail=%s", known.task_id, result.message, result.detail)
        self._reports.put(told)
        return told
