"""What tests of pulls share: small GGUF files that are no models of use, and a node in this process that can pull."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import struct
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.messages.pulls import PullProgress
from llmlb.node.agent import NodeAgent
from llmlb.node.engine.simulated_pool import simulated_pool
from llmlb.node.pull.reports import is_over
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Store
from llmlb.node.store.local import LocalSource
from llmlb.router.node_rpc import NodeRpc
from tests.conftest import MakeBus
from tests.support.hub import LocalHub

MIB = 1024 * 1024
FILE_TYPES = {"Q4_K_M": 15, "Q8_0": 7, "Q4_0": 2}


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(size: int, quant: str = "Q4_K_M", seed: int = 1) -> bytes:
    """A header that every reader takes, then noise up to ``size``."""
    out = b"GGUF" + struct.pack("<IQQ", 3, 1, 3)
    out += _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
    out += _text("general.file_type") + struct.pack("<II", 4, FILE_TYPES[quant])
    out += _text("llama.context_length") + struct.pack("<II", 4, 2048)
    out += _text("w") + struct.pack("<IQQIQ", 2, 3, 4, 0, 0)
    return out + random.Random(seed).randbytes(size - len(out))


class PullNode:
    """A node agent in this process, with its store under ``home``."""

    def __init__(self, home: Path, node_id: str, hub: LocalHub) -> None:
        self.home, self.node_id, self.hub = home, node_id, hub
        self.models = home / "models"
        self.agent: NodeAgent
        self.bus: Bus
        self.rpc: NodeRpc
        self.told: list[PullProgress] = []

    async def start(self, make_bus: MakeBus, **settings: Any) -> PullNode:
        def prepare(bus: Bus) -> None:
            store = Store(self.models)
            store.recover()
            catalog = Catalog([LocalSource(self.models)])
            settings = dataclasses.replace(bus.settings, home=self.home)
            self.agent = NodeAgent(settings, bus, catalog, self.node_id, simulated_pool(), store)
            self.agent.register()

        self.bus = await make_bus(prepare, hf_endpoint=self.hub.url, **settings)
        self.rpc = NodeRpc(self.bus, self.node_id)
        await self.agent.run("127.0.0.1:1")
        return self

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.agent._catalog.models()]

    @property
    def pulls(self) -> Any:
        assert self.agent.models is not None
        return self.agent.models.pulls

    async def stop(self) -> None:
        await self.agent.drain(1)
        await self.agent.close()

    async def task(self, task_id: str) -> PullProgress:
        return (await self.rpc.tasks(task_id)).tasks[0]

    async def over(self, task_id: str, limit_s: float = 30) -> PullProgress:
        """The last word on a task."""
        return await self.until(task_id, is_over, limit_s)

    async def until(self, task_id: str, condition: Callable[[PullProgress], bool], limit_s: float = 30) -> PullProgress:
        async with asyncio.timeout(limit_s):
            while not condition(found := await self.task(task_id)):
                await asyncio.sleep(0.02)
        return found

    async def queued(self) -> int:
        """Items of this node that are on the bus, worked or not."""
        info = await self.bus.client.jetstream().stream_info(
            subjects.STREAM_PULLS, subjects_filter=subjects.pull(self.node_id)
        )
        return sum((info.state.subjects or {}).values())

    async def until_acked(self, limit_s: float = 20) -> None:
        await eventually(lambda: self._none_queued(), limit_s)

    async def _none_queued(self) -> bool:
        return await self.queued() == 0


async def eventually(condition: Callable[[], Awaitable[bool]], limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while not await condition():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def pull_node(make_bus: MakeBus, home: Path, hub: LocalHub, **settings: Any) -> AsyncIterator[PullNode]:
    node = await PullNode(home, uuid.uuid4().hex, hub).start(make_bus, **settings)
    try:
        yield node
    finally:
        await node.stop()
