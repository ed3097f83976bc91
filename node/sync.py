"""Keeps the models of a node as the cluster's registry wants them.

The bucket ``llmlb-models`` is the desired state of approved nodes: what is registered for this node and not on its
disk is pulled, what was registered and is not any more is removed, unless a user of the node pulled it too. Nothing is
remembered here: at each change, after each reconnection and now and then, bucket and store are compared.

A model is removed only on evidence: the mark that a deletion leaves in the bucket, or a registration that names other
nodes. A bucket that is empty because the bus lost its store removes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.buckets import changes_of, read_bucket
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BadMessage, Conflict, InvalidRequest, LlmlbError, ModelUnknown
from llmlb.bus.hub_names import Wanted, parse_name, task_id_of, title_of, wanted_of
from llmlb.bus.messages.models import ModelInfo, RegisteredModel, RemoveModel
from llmlb.bus.messages.nodes import NodeRecord
from llmlb.bus.messages.pulls import PullProgress
from llmlb.bus.tasks import Background
from llmlb.node.pull.reports import is_over
from llmlb.node.pull.tasks import Pulls
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Store

log = logging.getLogger("llmlb.node.sync")

EVERY_S = 30.0
SOON_S = 2.0
GATHER_S = 0.2
"""Before each look, so that many changes at once are one of them."""
RETRY_FIRST_S, RETRY_MOST_S = 60.0, 600.0


@dataclass(frozen=True, slots=True)
class Desired:
    """What the registry says of this node. ``dropped``: names that were registered for it once, and are not now."""

    approved: bool = False
    wanted: tuple[Wanted, ...] = ()
    dropped: tuple[Wanted, ...] = ()
    records: Mapping[str, RegisteredModel] = field(default_factory=dict)
    """The registrations of what is wanted, by the id of its pull."""

    def is_it(self, wanted: Wanted, info: ModelInfo, path_name: str) -> bool:
        """Whether a model of the node is what is wanted: by its files where those were registered, else by its name."""
        record = self.records.get(task_id_of(wanted))
        if record is None or record.manifest is None:
            return is_it(wanted, info, path_name)
        same_repo = info.name.partition(":")[0].lower() == wanted.repo.lower()
        return same_repo and path_name in {file.local for file in record.manifest.files}


@dataclass(slots=True)
class _Trouble:
    """A pull that failed: so often, and tried again then (of time.monotonic)."""

    failures: int = 0
    next_at: float = 0.0
    counted: float = field(default=0.0)
    """``started_at`` of the task that was counted last."""


def is_it(wanted: Wanted, info: ModelInfo, path_name: str) -> bool:
    """Whether a model of the node is what is wanted: a repo alone means any model of it."""
    repo, _, label = info.name.partition(":")
    if repo.lower() != wanted.repo.lower():
        return False
    if wanted.file is not None:
        return path_name == wanted.file.rpartition("/")[2]
    if wanted.quant is None:
        return True
    # A variant whose file names no quantization goes by the file's name.
    stem = path_name.rpartition(".")[0]
    return wanted.quant.upper() in (label.upper(), (info.quantization or "").upper(), stem.upper())


def _was_cancelled(known: PullProgress, record: RegisteredModel) -> bool:
    """Whether somebody gave up the pull for this very registration: it is begun anew only when that is asked for."""
    return known.status == "cancelled" and known.registered_at == record.registered_at


class ModelSync:
    """:meth:`start` once the bus was opened. ``changed`` is called when the counts have."""

    def __init__(
        self,
        bus: Bus,
        node_id: str,
        pulls: Pulls,
        catalog: Catalog,
        store: Store,
        remove: Callable[[RemoveModel], Awaitable[object]],
        changed: Callable[[], None],
        *,
        retry_first_s: float = RETRY_FIRST_S,
    ) -> None:
        self._bus, self._node_id, self._pulls, self._catalog, self._store = bus, node_id, pulls, catalog, store
        self._remove, self._changed = remove, changed
        self._retry_first_s = retry_first_s
        self._background = Background("sync")
        self._poke = asyncio.Event()
        self._looked = asyncio.Event()
        self._desired = Desired()
        self._troubles: dict[str, _Trouble] = {}
        self._said: set[str] = set()
        self._counted: tuple[int, Desired, tuple[Wanted, ...]] = (-1, self._desired, ())

    def counts(self) -> tuple[int, int]:
        """(models that are registered for this node and whole on its disk, models that are registered for it).

        What could not be fetched, or was cancelled, does not count: a node is not kept out of work by it.
        """
        inventory, desired, missing = self._counted
        if inventory != self._catalog.inventory or desired is not self._desired:
            inventory, desired = self._catalog.inventory, self._desired
            models = self._models()
            missing = tuple(
                one for one in desired.wanted if not any(desired.is_it(one, info, path) for info, path in models)
            )
            self._counted = (inventory, desired, missing)
        ready = len(desired.wanted) - len(missing)
        return ready, ready + sum(not self._given_up(one) for one in missing)

    def _given_up(self, wanted: Wanted) -> bool:
        known = self._pulls.find(wanted)
        return known is not None and known.status in ("failed", "cancelled")

    @property
    def approved(self) -> bool:
        """True: the cluster gives this node work, as of the last look."""
        return self._desired.approved

    async def looked(self, most_s: float) -> None:
        """Return when it is known what the registry wants of this node, or after ``most_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._looked.wait()

    def start(self) -> None:
        self._bus.on_up(self._back_again)
        self._background.start(self._run(), "run")

    def poke(self) -> None:
        """Something has changed: compare soon."""
        self._poke.set()

    async def close(self) -> None:
        await self._background.close()

    async def _back_again(self) -> None:
        self.poke()

    async def _run(self) -> None:
        await self._bus.wait_up()
        await self._bus.subscribe(changes_of(subjects.BUCKET_MODELS), self._on_change)
        await self._bus.subscribe(changes_of(subjects.BUCKET_NODES, self._node_id), self._on_change)
        while True:
            if self._looked.is_set():
                await asyncio.sleep(GATHER_S)
            self._poke.clear()
            pause = EVERY_S
            try:
                await self._bus.wait_up()
                pause = await self._compare()
                self._said.clear()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                mapped = map_nats_error(error)
                self._say("sync_waits", f"error={mapped.message!r} detail={mapped.detail}")
                pause = SOON_S
            except LlmlbError as error:
                self._say("sync_waits", f"error={error.message!r} detail={error.detail}")
                pause = SOON_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._poke.wait()

    async def _on_change(self, _: Msg) -> None:
        self.poke()

    def _say(self, event: str, what: str) -> None:
        if (line := f"{event} {what}") not in self._said:
            self._said.add(line)
            log.warning("%s", line)

    # What is wanted

    async def registered(self) -> Mapping[str, RegisteredModel]:
        """What is registered for this node now, by the id of its pull. Raises nats.errors.Error."""
        return (await self._read()).records

    async def _read(self) -> Desired:
        """Raises nats.errors.Error."""
        record = (await read_bucket(self._bus.client, subjects.BUCKET_NODES, key=self._node_id)).get(self._node_id)
        if record is None or not self._approved(record):
            return Desired()
        wanted, dropped = list[Wanted](), list[Wanted]()
        records: dict[str, RegisteredModel] = {}
        for key, value in (await read_bucket(self._bus.client, subjects.BUCKET_MODELS)).items():
            try:
                registered = None if value is None else codec.decode_as(RegisteredModel, value)
                if registered is None:
                    dropped.append(wanted_of(subjects.model_name(key)))
                elif registered.nodes is None or self._node_id in registered.nodes:
                    wanted.append(wanted_of(registered.name, registered.file))
                    records[task_id_of(wanted[-1])] = registered
                else:
                    dropped.append(wanted_of(registered.name, registered.file))
            except (BadMessage, InvalidRequest) as error:
                self._say("registration_unreadable", f"key={key} error={error.message!r}")
        return Desired(True, tuple(wanted), tuple(dropped), records)

    def _approved(self, record: bytes) -> bool:
        try:
            return codec.decode_as(NodeRecord, record).approved
        except BadMessage as error:
            self._say("node_record_unreadable", f"detail={error.detail}")
            return False

    def _models(self) -> list[tuple[ModelInfo, str]]:
        """The node's own models with the name of the file by which each is loaded."""
        found = []
        for info in self._catalog.models():
            with contextlib.suppress(ModelUnknown, InvalidRequest):
                found.append((info, self._catalog.resolve(info.name).path.name))
        return found

    # What is done about it

    async def _compare(self) -> float:
        """Compare and act. Returns the seconds until it is worth another look."""
        before = self.counts()
        self._desired = await self._read()
        self._looked.set()
        self._give_templates()
        if self.counts() != before:
            self._changed()
        if not self._desired.approved or not self._pulls.restored:
            return EVERY_S if self._pulls.restored else SOON_S
        pause = await self._pull_missing()
        await self._end_dropped()
        return pause

    def _give_templates(self) -> None:
        """Registrations may bring a chat template with them."""
        wanted = [(wanted, self._desired.records[task_id_of(wanted)]) for wanted in self._desired.wanted]
        asked = [(wanted, record.chat_template) for wanted, record in wanted if record.chat_template is not None]
        if asked or self._catalog.templates:
            self._catalog.templates = {
                info.name: template
                for info, path in self._models()
                for wanted, template in asked
                if self._desired.is_it(wanted, info, path)
            }

    async def _pull_missing(self) -> float:
        models, pause = self._models(), EVERY_S
        for wanted in self._desired.wanted:
            if any(self._desired.is_it(wanted, info, path) for info, path in models):
                self._troubles.pop(task_id_of(wanted), None)
                continue
            known, record = self._pulls.find(wanted), self._desired.records[task_id_of(wanted)]
            if known is not None and (not is_over(known) or _was_cancelled(known, record)):
                continue
            wait_s = self._wait_s(wanted, record)
            if wait_s > 0:
                pause = min(pause, wait_s)
                continue
            log.info("sync_pulls model=%s", title_of(wanted))
            await self._pulls.begin(
                title_of(wanted), "sync", manifest=record.manifest, registered_at=record.registered_at
            )
        return pause

    def _wait_s(self, wanted: Wanted, record: RegisteredModel) -> float:
        """Seconds until a pull that failed is tried again; one that failed before this process began, or for an
        earlier registration, is tried now."""
        task_id = task_id_of(wanted)
        known = self._pulls.find(wanted)
        if known is None or known.registered_at != record.registered_at:
            self._troubles.pop(task_id, None)
            return 0.0
        trouble = self._troubles.get(task_id)
        if trouble is None:
            trouble = self._troubles[task_id] = _Trouble(counted=known.started_at)
        if known.started_at != trouble.counted and known.status != "completed":
            wait_s = min(RETRY_MOST_S, self._retry_first_s * 2.0 ** min(trouble.failures, 10))
            trouble.failures += 1
            trouble.counted, trouble.next_at = known.started_at, time.monotonic() + wait_s
            log.warning("sync_pull_failed model=%s status=%s again_in_s=%.0f", known.model, known.status, wait_s)
        return max(0.0, trouble.next_at - time.monotonic())

    async def _end_dropped(self) -> None:
        """Cancel the pulls and remove the models that only the registry wanted, and does not any more."""
        kept = {task_id_of(wanted) for wanted in self._desired.wanted}
        gone = {task_id_of(wanted) for wanted in self._desired.dropped} - kept
        for task in self._pulls.tasks():
            if not is_over(task) and task.origin == "sync" and self._is_gone(task.task_id, task.model, gone):
                log.info("sync_cancels model=%s", task.model)
                with contextlib.suppress(Conflict):  # it is being installed: removed in the next round
                    await self._pulls.cancel(task.task_id)
        for info, path in self._models():
            if not any(is_it(wanted, info, path) for wanted in self._desired.dropped):
                continue
            if any(self._desired.is_it(wanted, info, path) for wanted in self._desired.wanted):
                continue
            if await asyncio.to_thread(self._store.origins, info.name) == {"sync"}:
                await self._remove_one(info.name)

    def _is_gone(self, task_id: str, model: str, gone: set[str]) -> bool:
        """A registration of one file leaves only the name of its repo when it is deleted."""
        if task_id in gone:
            return True
        wanted = parse_name(model)
        still = {each.repo.lower() for each in self._desired.wanted}
        dropped = {each.repo.lower() for each in self._desired.dropped}
        return wanted.file is not None and wanted.repo.lower() in dropped - still

    async def _remove_one(self, name: str) -> None:
        log.info("sync_removes model=%s", name)
        try:
            await self._remove(RemoveModel(model=name))
        except LlmlbError as error:
            self._say("sync_not_removed", f"model={name} error={error.message!r}")
