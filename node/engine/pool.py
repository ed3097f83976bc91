"""The loaded models of a node: load on first use, count what runs, unload when idle.

What to do is decided in :mod:`llmlb.node.lifecycle` (pure); this module does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from llmlb.bus.errors import Conflict, EngineCrashed, LlmlbError, ModelLoadFailed, NodeBusy, OutOfMemory
from llmlb.bus.messages.nodes import GpuReading
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background
from llmlb.node.engine.interface import Capabilities, LoadOptions
from llmlb.node.engine.pool_interface import Loaded, OnChange, OnCrash, OnReply
from llmlb.node.engine.process import EngineProcess, Listener
from llmlb.node.engine.room import Room, layers_of
from llmlb.node.hardware import Memory
from llmlb.node.lifecycle import CRASHES_MAX, Lifecycle, Load, Unload
from llmlb.node.memory import Plan
from llmlb.node.store.catalog import StoredModel

log = logging.getLogger("llmlb.node.engine.pool")

TICK_S = 1.5
"""Between two looks at what is loaded, at most. Each heartbeat brings one, with the memory as it has just been read."""
TICK_LEAST_S = 0.25
PENDING_PER_SLOT = 16
"""Requests a model takes beyond its slots, for each slot; more is NodeBusy and goes to another node."""

PRESSURE_EVERY_S = 2.0
"""Between two such unloads, so that the memory of one is seen to be free before the next goes."""

_END = b'"type":"llmlb.infer.end.v1"'
"""In the bytes of the last reply of a whole answer."""

MakeProcess = Callable[[Listener], EngineProcess]


class _WorkerListener:
    def __init__(self, pool: EnginePool, loaded: Loaded) -> None:
        self._pool = pool
        self._loaded = loaded

    async def on_reply(self, handle: int, data: bytes, last: bool) -> None:
        if last:
            self._pool.finished(self._loaded, handle, whole=_END in data)
        await self._pool.on_reply(handle, data, last)

    def on_loading(self, percent: int) -> None:
        self._loaded.percent = percent

    def on_capabilities(self, capabilities: Capabilities) -> None:
        self._pool.learned(self._loaded, capabilities)

    async def on_exit(self, error: LlmlbError | None) -> None:
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
        self._pressed_at = 0.0
        self._some = asyncio.Event()
        """There is a model to look after."""
        self._due = asyncio.Event()
        self._memory: Memory | None = None
        """As somebody has just read it, for the next look."""
        self.gpus: Callable[[], Sequence[GpuReading]] = tuple
        """The GPUs, as last read; none unless the agent says so."""
        self._room = Room(settings, lambda: self.gpus(), lambda: self._loaded.values())
        self._placing = asyncio.Lock()
        """One model is placed at a time: what the others take has to be known."""
        self.make_process: MakeProcess = EngineProcess
        """What makes a worker."""

    def open(self) -> None:
        """Begin to watch for models whose keep-alive is over."""
        self._background.start(self._tick(), "tick")

    def loaded(self) -> list[Loaded]:
        """Every model in memory or on its way there, by name."""
        return [self._loaded[name] for name in sorted(self._loaded)]

    def state(self, name: str) -> str:
        return self._life.state(name)

    def failed(self) -> dict[str, str]:
        """Models that crashed too often to be tried again now, and why."""
        return self._life.failed()

    def loading_percent(self, name: str) -> int:
        """How far loading a model is, 0 to 100."""
        loaded = self._loaded.get(name)
        return 0 if loaded is None else loaded.percent

    def learned(self, loaded: Loaded, capabilities: Capabilities) -> None:
        """Its worker found out what the model can do."""
        loaded.capabilities = capabilities
        log.info(
            "model_capabilities model=%s vision=%s same_answer=%s",
            loaded.name,
            capabilities.vision,
            capabilities.same_answer,
        )
        self._on_change()

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
        if loaded is None and (why := self._life.failed().get(name)) is not None:
            raise ModelLoadFailed(
                f"{name} is failed: it crashed {CRASHES_MAX} times in a row, last: {why}. "
                f"'llmlb node stop {name}' lets it be tried again"
            )
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

    def finished(self, loaded: Loaded, handle: int, *, whole: bool) -> None:
        """A request ended; called once for each. ``whole``: with an answer."""
        if handle in loaded.handles:
            loaded.handles.discard(handle)
            if whole:
                self._life.answered(loaded.name)
            self._apply(self._life.finished(loaded.name, time.monotonic()))

    async def stop(self, name: str) -> None:
        """Unload a model once what runs on it has ended; forget that it failed. Raises Conflict when it is neither."""
        forgiven = self._life.forgive(name)
        if name not in self._loaded:
            if forgiven:
                return
            raise Conflict(f"model '{name}' is not loaded", param="model")
        gone = self._waiting_unload.setdefault(name, asyncio.Event())
        self._apply(self._life.stop(name, time.monotonic()))
        await gone.wait()

    def _apply(self, effects: list[Load | Unload], model: StoredModel | None = None) -> None:
        for effect in effects or []:
            if isinstance(effect, Load) and model is not None:
                loaded = self._loaded[effect.model] = Loaded(model)
                self._some.set()
                self._background.start(self._load(loaded, effect.after_s), f"load.{effect.model}")
            elif isinstance(effect, Unload):
                self._waiting_unload.setdefault(effect.model, asyncio.Event())
                self._background.start(self._unload(effect.model), f"unload.{effect.model}")

    async def _load(self, loaded: Loaded, after_s: float = 0.0) -> None:
        info = loaded.model.info
        if after_s:
            log.warning("model_restarts model=%s in_s=%.1f", info.name, after_s)
        self._on_change()
        await asyncio.sleep(after_s)
        began = time.monotonic()
        try:
            process = loaded.starting = self.make_process(_WorkerListener(self, loaded))
            size = await self._make_room(loaded)
            options = self._options(loaded.model, size, loaded.gpu_share)
            log.info("model_loading model=%s slots=%s context=%s", info.name, options.slots, options.context_length)
            await process.start(info.format, options, timeout_s=self._settings.load_timeout_s)
        except LlmlbError as error:
            self._load_failed(loaded, error)
            return
        except Exception as error:  # the top of a load: who waits for it has to hear
            log.exception("model_load_broke model=%s", info.name)
            self._load_failed(
                loaded, ModelLoadFailed(f"{info.name} could not be loaded: {error or type(error).__name__}")
            )
            return
        loaded.process, loaded.starting, loaded.expected = process, None, None
        loaded.slots, loaded.context_length, loaded.pid = process.slots, process.context_length, process.pid
        loaded.load_s = time.monotonic() - began
        effects = self._life.loaded(info.name, time.monotonic())
        log.info(
            "model_loaded model=%s instance=%s pid=%s slots=%d context=%d seconds=%.2f",
            info.name,
            loaded.instance,
            process.pid,
            process.slots,
            process.context_length,
            loaded.load_s,
        )
        self._resolve(loaded, None)
        self._apply(effects)
        self._on_change()

    def _load_failed(self, loaded: Loaded, error: LlmlbError) -> None:
        log.error("model_load_failed model=%s error=%s", loaded.name, error.message)
        self._loaded.pop(loaded.name, None)
        if isinstance(error, EngineCrashed):
            self._life.load_crashed(loaded.name, time.monotonic(), error.message)
        else:
            self._life.load_failed(loaded.name, time.monotonic())
        self._resolve(loaded, error)
        self._unblock(loaded.name)
        self._on_change()

    def _options(self, model: StoredModel, size: Plan, gpu_share: float) -> LoadOptions:
        layers = layers_of(model)
        return LoadOptions(
            model=model.info.name,
            path=str(model.path),
            template=model.template,
            slots=size.slots,
            context_length=size.context_length,
            threads=self._settings.num_threads,
            projector=None if model.projector is None else str(model.projector),
            gpu_layers=-1 if gpu_share >= 1 or not layers else int(layers * gpu_share),
            defaults=model.defaults,
        )

    # Memory

    async def _make_room(self, loaded: Loaded) -> Plan:
        """Slots and context that fit, counted as taken from now on; idle models make way. Raises OutOfMemory."""
        async with self._placing:
            while True:
                try:
                    loaded.expected, loaded.gpu_share = self._room.fit(loaded.model)
                    return loaded.expected
                except OutOfMemory:
                    if not await self._evict_one():
                        raise

    async def _evict_one(self) -> bool:
        """Unload the least recently used idle model, and wait for it. False when there is none."""
        effects = self._life.evict(time.monotonic())
        if not effects:
            return False
        gone = [self._waiting_unload.setdefault(effect.model, asyncio.Event()) for effect in effects]
        log.warning("model_evicted model=%s reason='memory is short'", effects[0].model)
        self._apply(effects)
        for event in gone:
            await event.wait()
        return True

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

    async def worker_gone(self, loaded: Loaded, error: LlmlbError | None) -> None:
        """A worker ended. Told to (error None) or not: what was on it is over."""
        orphans = sorted(loaded.handles)
        loaded.handles.clear()
        if error is not None and self._loaded.get(loaded.name) is loaded and loaded.process is not None:
            log.error("engine_crashed model=%s pid=%s error=%s", loaded.name, loaded.process.pid, error.message)
            del self._loaded[loaded.name]
            effects = self._life.crashed(loaded.name, time.monotonic(), error.message)
            self._unblock(loaded.name)
            self._apply(effects, loaded.model)
            if not effects and loaded.name in self._life.failed():
                log.error("model_failed model=%s crashes=%d last=%s", loaded.name, CRASHES_MAX, error.message)
            self._on_change()
        if orphans:
            await self._on_crash(orphans, error or EngineCrashed(f"{loaded.name} was unloaded"))

    async def _tick(self) -> None:
        while True:
            await self._some.wait()
            self._due.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(TICK_LEAST_S, self._until_next())):
                    await self._due.wait()
            now = time.monotonic()
            self._apply(self._life.tick(now))
            self._end_what_hangs()
            self._relieve(now)
            if not self._loaded:
                self._some.clear()

    def look(self, memory: Memory | None) -> None:
        """Look after the models now. ``memory``: the RAM of this machine, read just now; None: not known."""
        self._memory = memory
        self._due.set()

    def _until_next(self) -> float:
        """Seconds until a keep-alive may be over, or a worker has been silent for too long."""
        now, pauses = time.monotonic(), [TICK_S]
        for name, loaded in self._loaded.items():
            if (expires_in_s := self._life.expires_in_s(name, now)) is not None:
                pauses.append(expires_in_s)
            if loaded.process is not None and loaded.handles:
                pauses.append(self._settings.stall_timeout_s - loaded.process.silent_s)
        return min(pauses)

    def _end_what_hangs(self) -> None:
        """A busy worker that says nothing for the stall limit is ended; its requests fail."""
        for loaded in self._loaded.values():
            process = loaded.process
            if process is not None and loaded.handles and process.silent_s > self._settings.stall_timeout_s:
                log.error("engine_stalled model=%s pid=%s silent_s=%.0f", loaded.name, loaded.pid, process.silent_s)
                process.kill()

    def _relieve(self, now: float) -> None:
        """Unload an idle model while memory is short."""
        memory, self._memory = self._memory, None
        if not self._loaded or now - self._pressed_at < PRESSURE_EVERY_S:
            return
        if self._room.short(memory) and (effects := self._life.evict(now)):
            self._pressed_at = now
            log.warning("model_evicted model=%s reason='memory is short'", effects[0].model)
            self._apply(effects)

    async def close(self) -> None:
        """End every worker, at once."""
        await self._background.close()
        workers = [loaded.process for loaded in self._loaded.values() if loaded.process is not None]
        await asyncio.gather(*(worker.stop() for worker in workers))
        self._loaded.clear()
