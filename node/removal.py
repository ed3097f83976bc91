"""Removing a model from a node: unload it, let its answers finish, delete its files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from llmlb.bus.errors import Conflict, Forbidden, ModelUnknown
from llmlb.bus.messages.models import ModelRemoved, RemoveModel
from llmlb.node.engine.pool_interface import Pool
from llmlb.node.pull.tasks import Pulls
from llmlb.node.store.catalog import Catalog, StoredModel
from llmlb.node.store.installed import Store
from llmlb.node.store.local import Broken

log = logging.getLogger("llmlb.node.removal")


class Removal:
    """``changed`` is awaited when a model is gone."""

    def __init__(
        self, catalog: Catalog, pool: Pool, store: Store, pulls: Pulls, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._catalog, self._pool, self._store, self._pulls, self._changed = catalog, pool, store, pulls, changed
        self._going: set[str] = set()

    def is_going(self, name: str) -> bool:
        """True while a model is being removed: it takes no new request, which would load it again."""
        return name in self._going

    async def remove_model(self, request: RemoveModel) -> ModelRemoved:
        """Unload it, then delete it. One that is broken, and so is not listed, is deleted by its name too.

        Raises ModelUnknown, Forbidden (read-only), Conflict (a pull of the same repo runs), OutOfDisk, PullFailed.
        """
        try:
            model: StoredModel | Broken = self._catalog.resolve(request.model)
        except ModelUnknown:
            broken = await asyncio.to_thread(self._store.broken, request.model)
            if broken is None:
                raise
            model = broken
        name = model.name if isinstance(model, Broken) else model.info.name
        repo = name.partition(":")[0]
        if isinstance(model, StoredModel) and model.info.readonly:
            raise Forbidden(f"'{name}' is read-only: llmlb removes only what is in its own store", param="model")
        if self._pulls.is_busy(repo):
            raise Conflict(f"a pull of {repo} is running: wait for it or cancel it first", param="model")
        if name in self._going:
            raise Conflict(f"'{name}' is being removed already", param="model")
        self._going.add(name)
        try:
            freed = await self._remove(model)
        finally:
            self._going.discard(name)
        log.info("model_deleted model=%s freed_bytes=%d", name, freed)
        return ModelRemoved(model=name, freed_bytes=freed)

    async def _remove(self, model: StoredModel | Broken) -> int:
        if isinstance(model, Broken):
            for name in {model.name, model.repo} - self._catalog.names():
                await self._unload(name)  # it was whole when it was loaded
            freed = await asyncio.to_thread(self._store.remove_broken, model)
            await self._changed()
            return freed
        await self._unload(model.info.name)
        freed = await asyncio.to_thread(self._store.remove, model)
        await self._changed()
        return freed

    async def _unload(self, name: str) -> None:
        if name in self._pool.failed() or any(loaded.name == name for loaded in self._pool.loaded()):
            await self._pool.stop(name)
