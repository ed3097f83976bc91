"""One pull: from what was asked for to a model that is installed. Knows nothing of the bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from llmlb.bus.errors import Conflict, OutOfDisk, PullFailed
from llmlb.bus.hub_manifest import planned
from llmlb.bus.hub_names import Wanted
from llmlb.bus.hub_plan import Plan, PlannedFile, plan
from llmlb.bus.messages.models import ModelManifest
from llmlb.bus.messages.pulls import FileProgress, PullProgress
from llmlb.node.pull.download import Downloaded, HubSource, Progress, download
from llmlb.node.pull.fetch import Limits
from llmlb.node.pull.hub import Hub
from llmlb.node.pull.partial import disk_error
from llmlb.node.pull.room import Room, staged_bytes
from llmlb.node.store.installed import Installed, Store

NOTE_S = 10.0
"""How long something that happened once is shown."""
CONFLICT_WAIT_S = 60.0
"""A download that was cancelled may hold its file for some seconds still."""

MAX_LISTINGS = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Means:
    """What every pull of a node works with.

    ``names``: the names and aliases that are taken on the node; ``alias_of``: the short name of a model, if it has one.
    """

    hub: Hub
    store: Store
    room: Room
    names: Callable[[], Collection[str]]
    alias_of: Callable[[str], str | None]
    limits: Limits = field(default_factory=Limits)


class PullJob:
    """One pull. `run` it once; cancel it at any time. ``report`` is called with each change, on the loop."""

    def __init__(
        self,
        means: Means,
        wanted: Wanted,
        start: PullProgress,
        report: Callable[[PullProgress], None],
        manifest: ModelManifest | None = None,
    ) -> None:
        """``manifest``: its files as they were registered; the hub is not asked for them then."""
        self._manifest = manifest
        self._means, self._wanted, self._report = means, wanted, report
        self._state = start
        self._files: list[FileProgress] = []
        self._note: tuple[str, float] | None = None
        self._staging = Path()
        self.installing = False
        """True: the model is whole, and a cancel comes too late."""

    def claim(self) -> None:
        """A user wants it too, not only the registry."""
        self._change(origin="user")

    async def run(self) -> Installed:
        """Raises a lasting LlmlbError. What came stays on the disk, on failure and on cancel too."""
        for _ in range(MAX_LISTINGS):
            self._change(status="downloading", phase="manifest")
            todo = await self._plan()
            there = await asyncio.to_thread(self._means.store.is_installed, todo)
            if there is not None:
                await asyncio.to_thread(self._means.store.add_origin, there, self._state.origin)
                self._show(todo, [file.size for file in todo.files])
                return Installed(there, self._means.alias_of(there))
            await self._prepare(todo)
            if (digests := await self._fetch_all(todo)) is not None:
                return await self._install(todo, digests)
            if self._manifest is not None:
                raise PullFailed(f"the hub has other files of {self._wanted.repo} than were registered")
            self._say("the files have changed on the hub: they are listed anew")
        raise PullFailed(f"{self._wanted.repo} changes on the hub faster than it can be fetched")

    async def _plan(self) -> Plan:
        """What to fetch: as registered, else as the hub lists it now."""
        if self._manifest is not None:
            return planned(self._manifest, self._wanted)
        listing = await self._means.hub.listing(self._wanted, self._say)
        return await asyncio.to_thread(plan, self._spelled(listing.repo), listing.files, listing.commit)

    def _spelled(self, repo: str) -> Wanted:
        """What is wanted, as the hub writes it: it takes a name in any case."""
        if repo.lower() != self._wanted.repo.lower():
            return self._wanted
        owner, _, model = repo.partition("/")
        return replace(self._wanted, owner=owner, model=model)

    async def _prepare(self, todo: Plan) -> None:
        """Before the first byte. Raises OutOfDisk when there is no room for all of them."""
        self._staging = await asyncio.to_thread(self._means.store.staging, todo)
        staged = await asyncio.to_thread(staged_bytes, todo, self._staging)
        self._show(todo, staged)
        self._means.room.check(self._state.task_id, self._wanted.repo, todo.total_bytes - sum(staged))

    async def _fetch_all(self, todo: Plan) -> dict[str, str | None] | None:
        """The sha256 of each file, by its local name; None when the hub has others than it listed."""
        self._change(phase="downloading")
        digests: dict[str, str | None] = {}
        for index, file in enumerate(todo.files):
            done = await self._fetch(todo, index, file)
            if done.size != file.size:
                return None
            digests[file.local] = done.oid if done.oid is not None and len(done.oid) == 64 else None
        return digests

    # What is told

    def _change(self, **what: Any) -> None:
        note = self._note
        shown = note[0] if note is not None and time.monotonic() - note[1] < NOTE_S else None
        self._state = self._state.model_copy(update={"note": shown, **what})
        self._report(self._state)

    def _say(self, text: str) -> None:
        self._note = (text, time.monotonic())
        self._change()

    def _show(self, todo: Plan, staged: list[int]) -> None:
        """The manifest is read, and so many bytes of each file are there."""
        self._note, self._files = None, []
        for file, done in zip(todo.files, staged, strict=True):
            digest = file.oid if file.oid is not None and len(file.oid) == 64 else None
            self._files.append(FileProgress(name=file.local, digest=digest, total_bytes=file.size, done_bytes=done))
        self._change(files=tuple(self._files), total_bytes=todo.total_bytes, downloaded_bytes=sum(staged))

    def _on_progress(self, index: int, progress: Progress) -> None:
        self._files[index] = self._files[index].model_copy(
            update={
                "total_bytes": progress.total_bytes or self._files[index].total_bytes,
                "done_bytes": progress.done_bytes,
                "verified_bytes": progress.verified_bytes,
            }
        )
        total = sum(file.total_bytes for file in self._files)
        done = sum(file.done_bytes for file in self._files)
        fetched = done >= total
        what: dict[str, Any] = {"note": progress.trouble} if progress.trouble is not None else {}
        self._means.room.promise(self._state.task_id, max(0, total - done))
        self._change(
            phase="verifying" if fetched else "downloading",
            files=tuple(self._files),
            total_bytes=total,
            downloaded_bytes=done,
            speed_bps=round(progress.speed),
            eta_s=(total - done) / progress.speed if progress.speed > 0 else None,
            **what,
        )

    # What is done

    async def _fetch(self, todo: Plan, index: int, file: PlannedFile) -> Downloaded:
        """A file, over a full disk that somebody makes room on. Raises as `download` does."""
        source = HubSource(self._means.hub, self._wanted, todo.revision, file.path)
        stuck_at, stuck_since, most = 0.0, 0.0, -1
        while True:
            try:
                return await download(
                    source,
                    self._staging / file.local,
                    oid=file.oid,
                    limits=self._means.limits,
                    on_progress=lambda progress: self._on_progress(index, progress),
                    on_note=self._say,
                )
            except OutOfDisk as error:
                if self._files[index].done_bytes > most:
                    most, stuck_since = self._files[index].done_bytes, time.monotonic()
                await self._wait_for_room(todo, error, stuck_since)
            except Conflict:
                stuck_at = stuck_at or time.monotonic()
                if time.monotonic() - stuck_at > CONFLICT_WAIT_S:
                    raise
                self._say("an earlier pull of the same file is ending")
                await asyncio.sleep(1.0)

    async def _wait_for_room(self, todo: Plan, error: OutOfDisk, since: float) -> None:
        self._change(speed_bps=0, eta_s=None, note=f"{error.message}; it goes on when something is freed")
        staged = await asyncio.to_thread(staged_bytes, todo, self._staging)
        await self._means.room.wait(todo.total_bytes - sum(staged), error, since)

    async def _install(self, todo: Plan, digests: dict[str, str | None]) -> Installed:
        """Not to be interrupted: on cancel it is finished first."""
        self._change(phase="writing", speed_bps=0, eta_s=None)
        self.installing = True

        def install() -> Installed:
            try:
                return self._means.store.install(
                    todo,
                    digests,
                    origin=self._state.origin,
                    endpoint=self._means.hub.endpoint,
                    taken_aliases=self._means.names(),
                )
            except OSError as error:
                raise disk_error(error, self._staging) from error

        return await _whole(install)


async def _whole(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread, and wait for its end on cancel too."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
