"""Resident memory of llmlb's processes with a model, before and after many requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from llmlb.node.memory import kv_bytes_per_token
from llmlb.node.store.gguf import read_gguf
from tests.bench import machine
from tests.bench.engine_scenarios import CONTEXT, SHORT_REQUESTS, SLOTS, Server
from tests.bench.prompts import PromptMaker


async def many_short(target: Server, prompts: PromptMaker, count: int) -> None:
    """Short requests, eight at a time."""

    async def one() -> None:
        for _ in numbers:
            stream = await target.begin(prompts.story(), 4)
            await stream.answer()

    numbers = iter(range(count))
    async with asyncio.TaskGroup() as group:
        for _ in range(SLOTS):
            group.create_task(one())


@dataclass
class Memory:
    """Resident memory of llmlb's processes, in bytes: before and after the short requests."""

    before: dict[str, machine.Resident]
    after: dict[str, machine.Resident]
    kv: int
    model: int

    @property
    def beyond(self) -> int:
        worker = self.after["worker"]
        return worker.rss - worker.model - self.kv


def processes(server: Server, model: Path) -> dict[str, machine.Resident]:
    """The memory of each of its processes, by what it is."""
    found = {}
    for pid in machine.family(server.pid):
        line = machine.command(pid)
        if pid == server.pid:
            name = "router and node agent"
        elif "llmlb.node.engine.worker" in line:
            name = "worker"
        else:
            name = "bus" if "nats-server" in line else Path(line.split()[0]).name
        found[name] = machine.resident(pid, model)
    return found


async def memory(server: Server, prompts: PromptMaker, model: Path) -> Memory:
    """Use everything once, look, make the short requests, look again."""
    await many_short(server, prompts, 100)
    await asyncio.sleep(2)
    before = processes(server, model)
    await many_short(server, prompts, SHORT_REQUESTS)
    await asyncio.sleep(2)
    header = {key: str(value) for key, value in read_gguf(model).metadata.items()}
    kv = kv_bytes_per_token(header) * CONTEXT * SLOTS
    return Memory(before, processes(server, model), kv, model.stat().st_size)
