"""The models of the cluster for a gateway and over rpc: listed, searched, registered, deleted, fetched now.

Wired here, decided elsewhere: what is in the bucket (registry), what nodes told of their pulls (board), what the hub
says (client, catalog), and the fleet make up every answer. Several routers, and several processes of one, come to the
same answers and share nothing but the bus.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusDown, InvalidRequest, LlmlbError, NotFound
from llmlb.bus.messages.hub import (
    CancelClusterTask,
    CatalogPage,
    ClusterTask,
    ClusterTaskList,
    ClusterTasksCancelled,
    DeleteModel,
    DownloadModel,
    DownloadStarted,
    HubModel,
    HubModelList,
    ListClusterTasks,
    ListHubModels,
    ModelDeleted,
    ModelRegistered,
    RegisterModel,
    SearchCatalog,
)
from llmlb.bus.messages.models import RegisteredModel
from llmlb.bus.messages.pulls import PullProgress
from llmlb.router.fleet import Fleet, Node
from llmlb.router.hub import listing, states
from llmlb.router.hub.board import TaskBoard, is_over
from llmlb.router.hub.cache import Cache
from llmlb.router.hub.catalog import Catalog
from llmlb.router.hub.client import HubClient
from llmlb.router.hub.downloads import Downloads, task_of
from llmlb.router.hub.popularity import Popularity
from llmlb.router.hub.registration import Registrar
from llmlb.router.hub.registry import Registry
from llmlb.router.hub.seats import Seats
from llmlb.router.hub.supported import load

log = logging.getLogger("llmlb.router.hub")

RENAME_S = 0.05
AT_ONCE = 32
"""Nodes that are given a task at the same time."""


MOST_LISTED = 2_000
"""Tasks of a list, those that run before the others: more would not fit into a message."""
FILES_LISTED = 8
"""Of a task in a list; one that is asked for by its id is shown with all."""

T = TypeVar("T")


def _shortened(task: PullProgress) -> PullProgress:
    return task if len(task.files) <= FILES_LISTED else task.model_copy(update={"files": task.files[:FILES_LISTED]})


async def _all(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Every result, once all have ended. Raises the first error: what worked stays done."""
    found, errors = list[T](), list[BaseException]()
    for each in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(each, BaseException):
            errors.append(each)
        else:
            found.append(each)
    if errors:
        raise errors[0]
    return found


class ModelHub:
    """:meth:`register_rpc` before the bus opens, :meth:`start` after the fleet."""

    def __init__(self, bus: Bus, fleet: Fleet) -> None:
        """Raises ConfigError: LLMLB_SUPPORTED_MODELS names a file that can't be used."""
        settings = bus.settings
        self._bus, self._fleet = bus, fleet
        self._supported = load(settings.supported_models)
        self.registry = Registry(bus)
        """What is registered; ``on_change`` tells of each change."""
        self.board = TaskBoard(bus)
        """The pulls of all nodes; ``on_change`` tells of each progress."""
        self._seats = Seats(fleet, self.board)
        self._client = HubClient(settings.hf_endpoint, settings.hf_token)
        # What one hub says is nothing that another one said.
        which = hashlib.sha256(self._client.endpoint.encode()).hexdigest()[:12]
        self._cache = Cache(settings.home / "hub-cache" / which)
        self._catalog = Catalog(self._client, self._cache)
        self._popularity = Popularity(self._client, self._cache)
        self._registrar = Registrar(self._client, self._cache)
        self._downloads = Downloads(bus, self.board)
        fleet.more_names = self._more_names
        fleet.why_not = self._why_not
        self.registry.on_change.append(self._on_registered)
        self._renaming: asyncio.TimerHandle | None = None

    def register_rpc(self) -> None:
        """Offer the operations on the bus, in the routers' queue group."""

        async def hub_models(_: ListHubModels) -> HubModelList:
            return self.models()

        async def tasks(request: ListClusterTasks) -> ClusterTaskList:
            return self.tasks(request.task)

        bus, queue, rpc = self._bus, subjects.QUEUE_ROUTER, subjects.router_rpc
        bus.handle(rpc("hub_models"), ListHubModels, HubModelList, hub_models, queue=queue)
        bus.handle(rpc("register_model"), RegisterModel, ModelRegistered, self.register, queue=queue)
        bus.handle(rpc("delete_model"), DeleteModel, ModelDeleted, self.delete, queue=queue)
        bus.handle(rpc("search_catalog"), SearchCatalog, CatalogPage, self.search, queue=queue)
        bus.handle(rpc("download_model"), DownloadModel, DownloadStarted, self.download, queue=queue)
        bus.handle(rpc("tasks"), ListClusterTasks, ClusterTaskList, tasks, queue=queue)
        bus.handle(rpc("cancel_task"), CancelClusterTask, ClusterTasksCancelled, self.cancel, queue=queue)

    async def start(self) -> None:
        """Read the registry and the tasks; what fails is tried again behind it."""
        await self.registry.start()
        await self.board.start()

    async def close(self) -> None:
        if self._renaming is not None:
            self._renaming.cancel()
        await self._popularity.close()
        await self._catalog.close()
        await self.board.close()
        await self.registry.close()
        await self._client.close()

    # What the fleet asks

    def _on_registered(self, *_: object) -> None:
        """Names have changed: told to the fleet once for all changes of a moment, as each costs a look at each node."""
        if self._renaming is None:
            self._renaming = asyncio.get_running_loop().call_later(RENAME_S, self._rename)

    def _rename(self) -> None:
        self._renaming = None
        self._fleet.renamed()

    def _more_names(self, node: Node) -> dict[str, str]:
        """The names that registrations give to models of a node, beside its own."""
        found: dict[str, str] = {}
        for record in self.registry.all().values():
            there = states.name_there(record, node)
            if there is not None:
                found.update(dict.fromkeys((record.name, *record.aliases), there))
        return found

    def _why_not(self, model: str) -> LlmlbError | None:
        """Why a registered model can't be asked; None for one that is not registered."""
        record = self.registry.find(model)
        if record is None:
            repo = model.partition(":")[0].lower()
            alike = [one for one in self.registry.all().values() if one.name.partition(":")[0].lower() == repo]
            if ":" in model or not alike:
                return None
            record = alike[0]
        return states.why_not_ready(model, record, self._seats.of(record))

    # What can be asked

    def models(self) -> HubModelList:
        """Never waits for anything."""
        shown = listing.shown(
            self._supported, self.registry.all(), self._client.endpoint, self._seats.of, self._popularity.get
        )
        self._popularity.want(model.repo for model in shown)
        return HubModelList(models=shown)

    async def search(self, request: SearchCatalog) -> CatalogPage:
        """Raises HubUnavailable."""
        known = {name.lower() for name in self.registry.all()}
        return await self._catalog.page(request, self._seats.rooms(None), lambda name: name.lower() in known)

    async def register(self, request: RegisterModel) -> ModelRegistered:
        """Raises as Registrar.draft and Registry.create; NodeUnknown."""
        self._check_bus()
        nodes = self._node_ids(request.nodes)
        draft = await self._registrar.draft(request, nodes, self._seats.rooms(nodes))
        self._seats.check_aliases(draft.record)
        await self.registry.create(draft.record)
        log.info("model_registered model=%s by=%s", draft.record.name, request.registered_by)
        return ModelRegistered(
            model=self._shown(draft.record), record=draft.record, warnings=draft.warnings, sent_at=time.time()
        )

    def _shown(self, record: RegisteredModel) -> HubModel:
        return listing.of_record(
            record, self._supported, self._client.endpoint, self._seats.of(record), self._popularity.get
        )

    def _node_ids(self, wanted: Sequence[str] | None) -> tuple[str, ...] | None:
        """Raises NodeUnknown, InvalidRequest."""
        if wanted is None:
            return None
        return tuple(sorted({self._fleet.members.find(each) for each in wanted}))

    async def delete(self, request: DeleteModel) -> ModelDeleted:
        """Raises ModelUnknown, BusDown, DeadlineExceeded."""
        self._check_bus()
        record = self.registry.named(request.model)
        seats = self._seats.of(record)
        record = await self.registry.delete(record.name)
        log.info("model_deregistered model=%s", record.name)
        had = [seat for seat in seats if seat.has or (seat.task is not None and not is_over(seat.task))]
        for seat in had:
            # Nodes that are there cancel by themselves; of one that is away nobody else would say so.
            if not seat.online and seat.task is not None and not is_over(seat.task):
                await self._cancel_away(seat.task)
        return ModelDeleted(model=record.name, nodes=tuple(seat.node_id for seat in had))

    async def _cancel_away(self, task: PullProgress) -> None:
        try:
            await self._downloads.cancel_away(task)
        except LlmlbError as error:
            log.info("task_not_cancelled task=%s node=%s error=%s", task.task_id, task.node_id[:12], error.message)

    async def download(self, request: DownloadModel) -> DownloadStarted:
        """Raises ModelUnknown, NodeUnknown, InvalidRequest (conversion pending, no node), BusError …"""
        self._check_bus()
        record = self.registry.named(request.model)
        if record.conversion_pending:
            raise InvalidRequest(f"the model '{record.name}' waits for its conversion: it can't be downloaded")
        if request.all == bool(request.nodes):
            raise InvalidRequest("say either all or which nodes", param="nodes")
        if request.all:
            node_ids = [seat.node_id for seat in self._seats.of(record)]
        else:
            node_ids = list(self._node_ids(request.nodes) or ())
            self._seats.check_approved(node_ids)
            record = await self.registry.add_nodes(record.name, set(node_ids))
        if not node_ids:
            raise InvalidRequest("no approved node is there that it is meant for", param="nodes")
        room = asyncio.Semaphore(AT_ONCE)

        async def one(node_id: str) -> tuple[ClusterTask, bool]:
            async with room:
                task, attached = await self._downloads.start(node_id, record)
            return self._seats.task(task), attached

        started = await _all([one(node_id) for node_id in node_ids])
        started.sort(key=lambda pair: (pair[0].node_name, pair[0].node_id))
        return DownloadStarted(
            model=record.name,
            tasks=tuple(task for task, _ in started),
            attached=tuple(task.id for task, attached in started if attached),
        )

    def tasks(self, wanted: str | None = None) -> ClusterTaskList:
        """Raises NotFound."""
        found = self._found(wanted)
        if wanted is None:
            running = [task for task in found if not is_over(task)]
            kept = {id(task) for task in [*running, *(task for task in found if is_over(task))][:MOST_LISTED]}
            found = [_shortened(task) for task in found if id(task) in kept]
        return ClusterTaskList(tasks=tuple(self._seats.task(task) for task in found))

    def shown_task(self, task: PullProgress) -> ClusterTask:
        """As it is in a list of tasks."""
        return self._seats.task(_shortened(task))

    def _found(self, wanted: str | None) -> list[PullProgress]:
        known = [task for task in self.board.all() if self._seats.is_known(task.node_id)]
        if wanted is None:
            return known
        node, mark, task_id = wanted.lower().rpartition(".")
        found = [task for task in known if task.task_id == task_id and (not mark or task.node_id.startswith(node))]
        if not found and (record := self.registry.find(wanted)) is not None:
            found = [task for task in known if task.task_id == task_of(record)]
        if not found:
            raise NotFound(f"there is no download '{wanted[:80]}'", param="task")
        return found

    async def cancel(self, request: CancelClusterTask) -> ClusterTasksCancelled:
        """Raises NotFound, Conflict (over already), BusError …"""
        self._check_bus()
        found = self._found(request.task)
        running = [task for task in found if not is_over(task)] or found
        ended = await _all([self._downloads.cancel(task, purge=request.purge) for task in running])
        return ClusterTasksCancelled(tasks=tuple(self._seats.task(task) for task in ended))

    def _check_bus(self) -> None:
        if not self._bus.connected:
            raise BusDown("the bus is away: nothing can be changed now")
