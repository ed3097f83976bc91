"""The loaded models of a node, as everything but the pool itself sees them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.nodes import GpuReading
from llmlb.bus.settings import Settings
from llmlb.node.engine.interface import Capabilities
from llmlb.node.engine.process import EngineProcess
from llmlb.node.hardware import Memory
from llmlb.node.memory import Plan
from llmlb.node.store.catalog import StoredModel

OnReply = Callable[[int, bytes, bool], Awaitable[None]]
OnCrash = Callable[[list[int], LlmlbError], Awaitable[None]]
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
    percent: int = 0
    """How far loading is."""
    load_s: float | None = None
    """How long it took."""
    capabilities: Capabilities | None = None
    gpu_share: float = 0.0
    """How much of it is on GPUs, 0 to 1."""
    starting: EngineProcess | None = None
    """Its process, while it loads."""
    expected: Plan | None = None
    """What it will take, from when it is known to fit until it has loaded."""
    handles: set[int] = field(default_factory=set)
    ready: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def name(self) -> str:
        return self.model.info.name

    @property
    def memory_pid(self) -> int | None:
        """Whose memory it takes; None before there is a process."""
        return self.pid if self.starting is None else self.starting.pid

    @property
    def is_ready(self) -> bool:
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None


class Pool(Protocol):
    """The loaded models of a node, as the agent uses them; documented at :class:`llmlb.node.engine.pool.EnginePool`."""

    gpus: Callable[[], Sequence[GpuReading]]

    def open(self) -> None: ...
    def loaded(self) -> list[Loaded]: ...
    def state(self, name: str) -> str: ...
    def failed(self) -> dict[str, str]: ...
    def loading_percent(self, name: str) -> int: ...
    def expires_in_s(self, name: str) -> float | None: ...
    def ready_now(self, name: str) -> Loaded | None: ...
    async def ready(self, model: StoredModel) -> Loaded: ...
    def release(self, loaded: Loaded) -> None: ...
    def look(self, memory: Memory | None) -> None: ...
    def submit(self, loaded: Loaded, handle: int, next_seq: int, request: bytes) -> None: ...
    def cancel(self, loaded: Loaded, handle: int) -> None: ...
    async def stop(self, name: str) -> None: ...
    async def close(self) -> None: ...


class MakePool(Protocol):
    """Makes a pool: the real one, or the simulated one."""

    def __call__(self, settings: Settings, *, on_reply: OnReply, on_crash: OnCrash, on_change: OnChange) -> Pool: ...
