"""What changes the models of a node: pulls, removal, and the sync with the cluster's registry; wired together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import InvalidRequest, ModelUnknown
from llmlb.bus.messages.models import ModelRemoved, RemoveModel
from llmlb.bus.messages.pulls import CancelTask, ListTasks, PullStarted, StartPull, TaskCancelled, TaskList
from llmlb.bus.settings import Settings
from llmlb.node.engine.pool_interface import Pool
from llmlb.node.pull.hub import Hub
from llmlb.node.pull.job import Means
from llmlb.node.pull.room import Room
from llmlb.node.pull.tasks import Pulls
from llmlb.node.removal import Removal
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Store
from llmlb.node.sync import ModelSync


class NodeModels:
    """:meth:`register` before the bus opens, :meth:`start` after. ``changed``: the list of models is another one.

    ``means`` is for tests.
    """

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        node_id: str,
        catalog: Catalog,
        store: Store,
        pool: Pool,
        changed: Callable[[], None],
        means: Means | None = None,
    ) -> None:
        self._bus, self._node_id, self._catalog, self._changed = bus, node_id, catalog, changed
        means = means or Means(
            hub=Hub(settings.hf_endpoint, settings.hf_token),
            store=store,
            room=Room(settings.home / "models"),
            names=catalog.names,
            alias_of=self._alias_of,
        )
        self.pulls = Pulls(bus, node_id, means, parallel=settings.pull_parallel, changed=self._rescan)
        self._removal = Removal(catalog, pool, store, self.pulls, self._rescan)
        self.sync = ModelSync(bus, node_id, self.pulls, catalog, store, self._removal.remove_model, changed)
        self.pulls.on_over = self.sync.poke
        self.pulls.put_back.registered = self.sync.registered

    def register(self) -> None:
        """Offer the operations on the bus."""
        bus, node = self._bus, self._node_id
        bus.handle(subjects.node_rpc(node, "remove"), RemoveModel, ModelRemoved, self._removal.remove_model)
        bus.handle(subjects.node_rpc(node, "pull"), StartPull, PullStarted, self.pulls.pull)
        bus.handle(subjects.node_rpc(node, "tasks"), ListTasks, TaskList, self.pulls.list_tasks)
        bus.handle(subjects.node_rpc(node, "cancel_task"), CancelTask, TaskCancelled, self.pulls.cancel_task)

    def start(self) -> None:
        """Go on with the pulls that are on the bus, and look what the registry wants."""
        self.pulls.start()
        self.sync.start()

    def is_going(self, name: str) -> bool:
        """True while a model is being removed."""
        return self._removal.is_going(name)

    def pulling(self) -> tuple[str, ...]:
        """Names of the models that are on their way."""
        return tuple(task.model for task in self.pulls.tasks() if task.status in ("pending", "downloading"))

    async def close(self) -> None:
        """End the pulls within some seconds; they go on when the node is back. May be called twice. Never raises."""
        await self.sync.close()
        await self.pulls.close()

    async def _rescan(self) -> None:
        await asyncio.to_thread(self._catalog.rescan)
        self._changed()

    def _alias_of(self, name: str) -> str | None:
        with contextlib.suppress(ModelUnknown, InvalidRequest):
            return next(iter(self._catalog.resolve(name).info.aliases), None)
        return None
