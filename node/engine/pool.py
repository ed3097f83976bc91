"""The loaded models of a node: load on first use, count what runs, unload when idle.

What to do is decided in :mod:`llmlb.node.lifecycle` (pure); this module does it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from llmlb.bus.errors import Conflict, EngineCrashed, LlmlbError, NodeBusy
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background
from llmlb.node.engine.interface import LoadOptions
from llmlb.node.engine.process import EngineProcess
from llmlb.node.lifecycle import Lifecycle, Load, Unload
from llmlb.node.store.catalog import StoredModel

log = logging.getLogger("llmlb.node.engine.pool")

TICK_S = 0.5
PENDING_PER_SLOT = 16
"""Requests a model takes beyond its slots, for each slot; more is NodeBusy and goes to another node."""

OnReply = Callable[[int, bytes, bool], Awaitable[None]]
OnCrash = Callable[[list[int], EngineCrashed], Awaitable[None]]
OnChange = Callable[[], None]


@dataclass(slots=True)
class Loaded:
    """One model in memory, or on its way there."""

    model: StoredModel
    instance: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    process: EngineProcess | None = None
    slots: int = 0
    """Requests it runs at once; 0 while it loads."""
    context_length: int = 0
    pid: int | None = None
    handles: set[int] = field(default_factory=set)
    ready: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def name(self) -> str:
        return self.model.info.name

    @property
    def is_ready(self) -> bool:
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None


class Pool(Protocol):
    """The loaded models of a node, as the agent uses them; documented at :class:`EnginePool`."""

    def open(self) -> None: ...
    def loaded(self) -> list[Loaded]: ...
    def state(self, name: str) -> str: ...
    def expires_in_s(self, name: str) -> float | None: ...
    def ready_now(self, name: str) -> Loaded | None: ...
    async def ready(self, model: StoredModel) -> Loaded: ...
    def release(self, loaded: Loaded) -> None: ...
    def submit(self, loaded: Loaded, handle: int, next_seq: int, request: bytes) -> None: ...
    def cancel(self, loaded: Loaded, handle: int) -> None: ...
    async def stop(self, name: str) -> None: ...
    async def close(self) -> None: ...


class MakePool(Protocol):
    """Makes a pool: :class:`EnginePool`, or the simulated one."""

    def __call__(self, settings: Settings, *, on_reply: OnReply, on_crash: OnCrash, on_change: OnChange) -> Pool: ...


class _WorkerListener:
    def __init__(self, pool: EnginePool, loaded: Loaded) -> None:
        self._pool = pool
        self._loaded = loaded

    async def on_reply(self, handle: int, data: bytes, last: bool) -> None:
        if last:
            self._pool.finished(self._loaded, handle)
        await self._pool.on_reply(handle, data, last)

    async def on_exit(self, error: EngineCrashed | None) -> None:
        await self._pool.worker_gone(self._loaded, error)


class EnginePool:
    """All workers of this node. ``on_reply`` gets each reply, ``on_crash`` the handles a dead worker leaves."""

    def __init__(self, settings: Settings, *, on_reply: OnReply, on_crash: OnCrash, on_change: OnChange) -> None:
        self._settings = settings
        self.on_reply = on_reply
        self._on_crash = on_crash
        self._on_change = on_change
        self._life = Lifecycle(settings.keep_alive_s)
        self._loaded: dict[str, Loaded] = {}
        self._waiting_unload: dict[str, asyncio.Event] = {}
        self._background = Background("engines")

    def open(self) -> None:
        """Begin to watch for models whose keep-alive is over."""
        self._background.start(self._tick(), "tick")

    def loaded(self) -> list[Loaded]:
        """Every model in memory or on its way there, by name."""
        return [self._loaded[name] for name in sorted(self._loaded)]

    def state(self, name: str) -> str:
        return self._life.state(name)

    def expires_in_s(self, name: str) -> float | None:
        """Seconds until an idle model is unloaded; None: never, or busy for ever."""
        return self._life.expires_in_s(name, time.monotonic())

    def ready_now(self, name: str) -> Loaded | None:
        """The model if it is in memory and takes requests, held as by :meth:`ready`; None: it has to be waited for."""
        loaded = self._loaded.get(name)
        if loaded is None or not loaded.is_ready or self._life.state(name) != "ready":
            return None
        self._life.started(name, time.monotonic())
        return loaded

    async def ready(self, model: StoredModel) -> Loaded:
        """The model, in memory and held there: give it to :meth:`submit` or :meth:`release`, exactly once.

        One load is shared by all who wait. Raises ModelLoadFailed, NodeBusy.
        """
        name = model.info.name
        while (gone := self._waiting_unload.get(name)) is not None:
            await gone.wait()
        self._apply(self._life.want(name, time.monotonic()), model)
        loaded = self._loaded.get(name)
        if loaded is None:
            raise NodeBusy(f"{name} is being unloaded")
        self._life.started(name, time.monotonic())
        try:
            await asyncio.shield(loaded.ready)
        except BaseException:  # cancelled or failed alike: what was held is let go, and the cause goes on
            self.release(loaded)
            raise
        return loaded

    def release(self, loaded: Loaded) -> None:
        """Let go of a model that was held and got no request."""
        if self._loaded.get(loaded.name) is loaded:
            self._apply(self._life.finished(loaded.name, time.monotonic()))

    def submit(self, loaded: Loaded, handle: int, next_seq: int, request: bytes) -> None:
        """Give a request to a held model. Raises NodeBusy (too much waits there), EngineCrashed (it is gone)."""
        process = loaded.process
        if process is None or self._loaded.get(loaded.name) is not loaded:
            raise EngineCrashed(f"the engine of {loaded.name} is gone")
        if len(loaded.handles) >= process.slots * (1 + PENDING_PER_SLOT):
            self.release(loaded)
            raise NodeBusy(f"{len(loaded.handles)} requests are on {loaded.name} already")
        loaded.handles.add(handle)
        process.submit(handle, next_seq, request)

    def cancel(self, loaded: Loaded, handle: int) -> None:
        """End a request; its last reply still comes."""
        if loaded.process is not None and handle in loaded.handles:
            loaded.process.cancel(handle)

    def finished(self, loaded: Loaded, handle: int) -> None:
        """A request ended; called once for each."""
        if handle in loaded.handles:
            loaded.handles.discard(handle)
            self._apply(self._life.finished(loaded.name, time.monotonic()))

    async def stop(self, name: str) -> None:
        """Unload a model once what runs on it has ended. Raises Conflict when it is not loaded."""
        if name not in self._loaded:
            raise Conflict(f"model '{name}' is not loaded", param="model")
        gone = self._waiting_unload.setdefault(name, asyncio.Event())
        self._apply(self._life.stop(name, time.monotonic()))
        await gone.wait()

    def _apply(self, effects: list[Load | Unload], model: StoredModel | None = None) -> None:
        for effect in effects or []:
            if isinstance(effect, Load) and model is not None:
                loaded = self._loaded[effect.model] = Loaded(model)
                self._background.start(self._load(loaded), f"load.{effect.model}")
            elif isinstance(effect, Unload):
                self._waiting_unload.setdefault(effect.model, asyncio.Event())
                self._background.start(self._unload(effect.model), f"unload.{effect.model}")

    async def _load(self, loaded: Loaded) -> None:
        began = time.monotonic()
        info = loaded.model.info
        log.info("model_loading model=%s", info.name)
        self._on_change()
        process = EngineProcess(_WorkerListener(self, loaded))
        options = LoadOptions(
            model=info.name,
            path=str(loaded.model.path),
            template=loaded.model.template,
            slots=self._settings.num_parallel,
            context_length=self._settings.context_length,
            threads=self._settings.num_threads,
        )
        try:
            await process.start(info.format, options, timeout_s=self._settings.load_timeout_s)
        except LlmlbError as error:
            log.error("model_load_failed model=%s error=%s", info.name, error.message)
            self._loaded.pop(info.name, None)
            self._life.load_failed(info.name, time.monotonic())
            self._resolve(loaded, error)
            self._unblock(info.name)
            self._on_change()
            return
        loaded.process = process
        loaded.slots, loaded.context_length, loaded.pid = process.slots, process.context_length, process.pid
        effects = self._life.loaded(info.name, time.monotonic())
        log.info(
            "model_loaded model=%s instance=%s pid=%s slots=%d context=%d seconds=%.2f",
            info.name,
            loaded.instance,
            process.pid,
            process.slots,
            process.context_length,
            time.monotonic() - began,
        )
        self._resolve(loaded, None)
        self._apply(effects)
        self._on_change()

    @staticmethod
    def _resolve(loaded: Loaded, error: LlmlbError | None) -> None:
        if not loaded.ready.done():
            if error is None:
                loaded.ready.set_result(None)
            else:
                loaded.ready.set_exception(error)
                loaded.ready.exception()  # marks it as seen: those who wait hold their own reference

    async def _unload(self, name: str) -> None:
        loaded = self._loaded.get(name)
        if loaded is not None and loaded.process is not None:
            await loaded.process.stop()
            await self.worker_gone(loaded, None)
        if loaded is not None and self._loaded.get(name) is loaded:
            del self._loaded[name]
            log.info("model_unloaded model=%s", name)
        self._life.unloaded(name, time.monotonic())
        self._unblock(name)
        self._on_change()

    def _unblock(self, name: str) -> None:
        if (gone := self._waiting_unload.pop(name, None)) is not None:
            gone.set()

    async def worker_gone(self, loaded: Loaded, error: EngineCrashed | None) -> None:
        """A worker ended. Told to (error None) or not: what was on it is over."""
        orphans = sorted(loaded.handles)
        loaded.handles.clear()
        if error is not None and self._loaded.get(loaded.name) is loaded and loaded.process is not None:
            log.error("engine_crashed model=%s pid=%s error=%s", loaded.name, loaded.process.pid, error.message)
            del self._loaded[loaded.name]
            self._life.crashed(loaded.name, time.monotonic())
            self._unblock(loaded.name)
            self._on_change()
        if orphans:
            await self._on_crash(orphans, error or EngineCrashed(f"{loaded.name} was unloaded"))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._apply(self._life.tick(time.monotonic()))

    async def close(self) -> None:
        """End every worker, at once."""
        await self._background.close()
        workers = [loaded.process for loaded in self._loaded.values() if loaded.process is not None]
        await asyncio.gather(*(worker.stop() for worker in workers))
        self._loaded.clear()
