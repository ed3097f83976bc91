"""The pool of a simulated node: the real pool over simulated processes, and the models it serves."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import time
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from llmlb.bus import codec
from llmlb.bus.errors import (
    Cancelled,
    EngineCrashed,
    LlmlbError,
    ModelLoadFailed,
    ModelUnknown,
)
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.infer import (
    Delta,
    Embedded,
    End,
    Failed,
    FinishReason,
    InferReply,
    InferRequest,
    Progress,
    Timings,
    Usage,
)
from llmlb.bus.messages.models import ModelInfo
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background
from llmlb.node.engine.interface import Handle, LoadOptions, Piece
from llmlb.node.engine.pool import EnginePool
from llmlb.node.engine.pool_interface import Loaded, MakePool, OnChange, OnCrash, OnReply
from llmlb.node.engine.process import EngineProcess, Listener
from llmlb.node.engine.simulated import GRAIN_S, PREFIX, TURN, FaultScript, SimulatedEngine, SimulatedSpec
from llmlb.node.store.catalog import StoredModel

log = logging.getLogger("llmlb.node.engine.simulated_pool")


class Replies:
    """Turns what an engine made into numbered replies, kept in order until they are taken."""

    def __init__(self) -> None:
        self._streams: dict[Handle, tuple[str, int]] = {}
        self._out: list[tuple[Handle, bytes, bool]] = []

    def open(self, handle: Handle, request_id: str, next_seq: int) -> None:
        self._streams[handle] = (request_id, next_seq)

    def take(self) -> list[tuple[Handle, bytes, bool]]:
        """(handle, bytes for the bus, is it the last) of each reply since the last call."""
        out, self._out = self._out, []
        return out

    def skip(self, handle: Handle) -> None:
        """Leave out one number: the fault ``gap``."""
        request_id, seq = self._streams[handle]
        self._streams[handle] = (request_id, seq + 1)

    def _next(self, handle: Handle) -> tuple[str, int]:
        request_id, seq = self._streams[handle]
        self._streams[handle] = (request_id, seq + 1)
        return request_id, seq

    def _put(self, handle: Handle, message: InferReply, *, last: bool = False) -> None:
        self._out.append((handle, codec.encode(message), last))
        if last:
            del self._streams[handle]

    def progress(self, handle: Handle, phase: Literal["queued", "prefill"], done: int, total: int) -> None:
        request_id, seq = self._next(handle)
        self._put(handle, Progress(request_id=request_id, seq=seq, phase=phase, done=done, total=total))

    def delta(self, handle: Handle, piece: Piece) -> None:
        request_id, seq = self._next(handle)
        self._put(handle, Delta(request_id=request_id, seq=seq, text=piece.text, token_ids=piece.token_ids))

    def alive(self) -> None: ...

    def embedded(self, handle: Handle, index: int, vector: bytes) -> None:
        request_id, seq = self._next(handle)
        self._put(handle, Embedded(request_id=request_id, seq=seq, index=index, vector=b64encode(vector).decode()))

    def end(
        self, handle: Handle, reason: FinishReason, usage: Usage, timings: Timings, stop_text: str | None = None
    ) -> None:
        request_id, seq = self._next(handle)
        end = End(
            request_id=request_id, seq=seq, finish_reason=reason, usage=usage, timings=timings, stop_text=stop_text
        )
        self._put(handle, end, last=True)

    def failed(self, handle: Handle, error: LlmlbError) -> None:
        request_id, seq = self._next(handle)
        self._put(handle, Failed(request_id=request_id, seq=seq, error=WireError.of(error)), last=True)


class Timer:
    """One task that runs each process when its next piece of work is due. Any number of pools share it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, SimulatedProcess]] = []
        self._numbers = itertools.count()
        self._sooner = asyncio.Event()
        self._users = 0
        self._background: Background | None = None

    def enter(self) -> None:
        """A pool begins to use it; the first one starts the task."""
        self._users += 1
        if self._background is None:
            self._background = Background("simulated")
            self._background.start(self._run(), "timer")

    async def leave(self) -> None:
        """A pool is closed; with the last one the task ends."""
        self._users -= 1
        if self._users == 0 and self._background is not None:
            background, self._background = self._background, None
            self._heap.clear()
            await background.close()

    def wake(self, process: SimulatedProcess, when: float) -> None:
        """Run this process at ``when``, or earlier if that was said before."""
        if math.isinf(when):
            return
        when = math.ceil(when / GRAIN_S) * GRAIN_S
        if when < process.wake_at:
            process.wake_at = when
            if not self._heap or when < self._heap[0][0]:
                self._sooner.set()
            heapq.heappush(self._heap, (when, next(self._numbers), process))

    async def _run(self) -> None:
        served = 0
        while True:
            now = time.monotonic()
            while self._heap and self._heap[0][0] <= now:
                when, _, process = heapq.heappop(self._heap)
                if process.wake_at != when:
                    continue  # it was woken earlier
                process.wake_at = math.inf
                try:
                    await process.work()
                except Exception:  # the top of a task: the others' engines must not stand still for one
                    log.exception("simulated_engine_failed")
                served += 1
                if served % TURN == 0:
                    await asyncio.sleep(0)
            await self._pause()

    async def _pause(self) -> None:
        """Until the next is due, at least GRAIN_S while there is one: what is late then is coalesced."""
        self._sooner.clear()
        if not self._heap:
            await self._sooner.wait()
            return
        wait = self._heap[0][0] - time.monotonic()
        if wait <= GRAIN_S:
            await asyncio.sleep(max(wait, GRAIN_S / 2))
            return
        try:
            async with asyncio.timeout(wait):
                await self._sooner.wait()
        except TimeoutError:
            return


class SimulatedProcess(EngineProcess):
    """Stands in for a worker process: the same calls, the same replies to the listener, no process.

    Like a worker it answers nothing once it is gone; what was on it is the pool's to tell.
    """

    def __init__(self, listener: Listener, spec: SimulatedSpec, faults: FaultScript, timer: Timer) -> None:
        super().__init__(listener)
        self.wake_at = math.inf
        """When the timer runs it next; the timer's."""
        self._spec = spec
        self._faults = faults
        self._timer = timer
        self._replies = Replies()
        self._engine: SimulatedEngine | None = None

    @property
    def silent_s(self) -> float:
        """0: a simulated engine that hangs is found out by the one who waits for its answer."""
        return 0.0

    async def start(self, format: str, options: LoadOptions, *, timeout_s: float) -> None:
        """Take ``load_s`` to load. Raises ModelLoadFailed (scripted, or longer than ``timeout_s``)."""
        fault = self._faults.next_load()
        await asyncio.sleep(min(self._spec.load_s, timeout_s))
        if self._spec.load_s > timeout_s:
            raise ModelLoadFailed(f"{options.model} was not loaded within {timeout_s:.0f} s")
        if fault is not None:
            raise ModelLoadFailed(f"{options.model} could not be loaded, as its script says")
        self._engine = SimulatedEngine(self._spec, self._faults, on_gap=self._replies.skip)
        self.slots, self.context_length = self._engine.slots, self._engine.context_length

    def submit(self, handle: int, next_seq: int, request: bytes) -> None:
        if self._engine is None:
            return
        decoded = codec.decode_as(InferRequest, request)
        self._replies.open(handle, decoded.request_id, next_seq)
        try:
            self._engine.submit(handle, decoded)
        except LlmlbError as error:
            self._replies.failed(handle, error)
            self._timer.wake(self, time.monotonic())
        self._timer.wake(self, self._engine.next_due())

    def cancel(self, handle: int) -> None:
        if self._engine is not None and self._engine.cancel(handle):
            self._replies.failed(handle, Cancelled("the request was cancelled"))
            self._timer.wake(self, time.monotonic())

    async def work(self) -> None:
        """Do what is due and hand on what came of it. Called by the timer only."""
        if self._engine is None:
            return
        crash: EngineCrashed | None = None
        try:
            self._engine.step(self._replies)
        except EngineCrashed as error:
            crash, self._engine = error, None
        for handle, data, last in self._replies.take():
            await self._listener.on_reply(handle, data, last)
        if crash is not None:
            await self._listener.on_exit(crash)
        elif self._engine is not None:
            self._timer.wake(self, self._engine.next_due())

    async def stop(self) -> None:
        self._engine = None


class SimulatedPool(EnginePool):
    """The pool of a simulated node: the real one, with simulated processes and only ``simulated/`` models."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_reply: OnReply,
        on_crash: OnCrash,
        on_change: OnChange,
        spec: SimulatedSpec,
        timer: Timer,
    ) -> None:
        super().__init__(settings, on_reply=on_reply, on_crash=on_crash, on_change=on_change)
        self.spec = spec
        self.faults = FaultScript(spec.faults)
        """What is still to go wrong; a test may add to it at any time."""
        self._timer = timer
        self._opened = False
        self.make_process = lambda listener: SimulatedProcess(listener, self.spec, self.faults, timer)

    def open(self) -> None:
        super().open()
        self._opened = True
        self._timer.enter()

    async def ready(self, model: StoredModel) -> Loaded:
        """As the real pool's. Raises ModelUnknown for a name outside ``simulated/``."""
        if not model.info.name.startswith(PREFIX):
            raise ModelUnknown(f"the simulated engine serves only names that begin with {PREFIX}", param="model")
        return await super().ready(model)

    async def close(self) -> None:
        await super().close()
        if self._opened:
            self._opened = False
            await self._timer.leave()


def simulated_pool(spec: SimulatedSpec | None = None, timer: Timer | None = None) -> MakePool:
    """What a NodeAgent takes as ``make_pool``. The pools made by it share a timer, ``timer`` where given."""
    shared = timer or Timer()
    chosen = spec or SimulatedSpec()

    def make(settings: Settings, *, on_reply: OnReply, on_crash: OnCrash, on_change: OnChange) -> SimulatedPool:
        return SimulatedPool(
            settings, on_reply=on_reply, on_crash=on_crash, on_change=on_change, spec=chosen, timer=shared
        )

    return make


class SimulatedSource:
    """A catalog's source of models that are on no disk. They have no aliases: those could be real names."""

    def __init__(self, names: Iterable[str], *, context_length: int = 4096) -> None:
        """Raises ValueError for a name outside ``simulated/``."""
        self._models = [self._model(name, context_length) for name in names]

    @staticmethod
    def _model(name: str, context_length: int) -> StoredModel:
        if not name.startswith(PREFIX) or name == PREFIX:
            raise ValueError(f"the name of a simulated model begins with {PREFIX}: {name!r}")
        info = ModelInfo(
            name=name,
            format="GGUF",
            size_bytes=1,
            architecture="simulated",
            context_length=context_length,
            source="Local",
            readonly=True,
            created_at=0,
        )
        return StoredModel(info, Path("/nonexistent") / name, None, None, None, {})

    def scan(self) -> Iterable[StoredModel]:
        return self._models
