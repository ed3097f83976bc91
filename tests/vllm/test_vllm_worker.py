"""The vLLM engine in the real worker process. ``make test-vllm``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus import codec
from llmlb.bus.errors import EngineCrashed, LlmlbError
from llmlb.node.engine.interface import Capabilities
from llmlb.node.engine.process import EngineProcess
from llmlb.node.engine.vllm import SILENT_S
from tests.vllm.rig import CONTEXT, ENDLESS, SLOTS, chat, options

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    # vLLM and torch warn of themselves on import.
    pytest.mark.filterwarnings("ignore"),
]


@dataclass
class Listener:
    """Gathers what a worker says."""

    replies: list[tuple[int, dict[str, Any], bool]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    exits: list[LlmlbError | None] = field(default_factory=list)
    capabilities: Capabilities | None = None
    shared_memory: set[Path] = field(default_factory=lambda: set(Path("/dev/shm").iterdir()))
    """What was there before the worker."""

    async def on_reply(self, handle: int, data: bytes, last: bool) -> None:
        self.replies.append((handle, json.loads(data), last))
        self.changed.set()

    def on_loading(self, percent: int) -> None:
        pass

    def on_capabilities(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities

    async def on_exit(self, error: LlmlbError | None) -> None:
        self.exits.append(error)
        self.changed.set()

    async def until(self, condition: Any, timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def of(self, handle: int, type: str) -> list[dict[str, Any]]:
        return [message for h, message, _ in self.replies if h == handle and f".{type}." in message["type"]]

    def over(self, handle: int) -> bool:
        return any(h == handle and last for h, _, last in self.replies)


@pytest.fixture
async def worker(checkpoint: Path) -> AsyncIterator[tuple[EngineProcess, Listener]]:
    listener = Listener()
    process = EngineProcess(listener)
    await process.start("Safetensors", options(checkpoint), timeout_s=240)
    yield process, listener
    await process.stop()


def group(leader: int) -> dict[int, str]:
    """The living processes of a session, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                pid = int(entry.name)
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if os.getsid(pid) == leader and state != "Z":
                    found[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):
                continue
    return found


async def nothing_left(leader: int, listener: Listener, within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while group(leader):
            await asyncio.sleep(0.1)
    assert set(Path("/dev/shm").iterdir()) <= listener.shared_memory


async def test_a_worker_streams_cancels_and_leaves_nothing_behind(worker: tuple[EngineProcess, Listener]) -> None:
    process, listener = worker
    assert (process.slots, process.context_length) == (SLOTS, CONTEXT)
    assert listener.capabilities is not None
    assert not listener.capabilities.vision
    process.submit(1, 0, codec.encode(chat()))
    await listener.until(lambda: listener.of(1, "end"))
    assert len(listener.of(1, "delta")) > 5
    assert [message["seq"] for h, message, _ in listener.replies if h == 1] == list(range(len(listener.replies)))
    for handle in range(2, 7):  # where others compute, too, an answer may reach the end of its context first
        process.submit(handle, 0, codec.encode(chat(sampling=ENDLESS)))
        await listener.until(partial(listener.of, handle, "delta"))
        process.cancel(handle)
        await listener.until(partial(listener.over, handle))
        if failed := listener.of(handle, "failed"):
            break
    assert failed
    assert failed[0]["error"]["reason"] == "cancelled"
    pid = process.pid
    assert pid is not None
    assert len(group(pid)) > 1, "vLLM has processes of its own"
    await process.stop()
    await nothing_left(pid, listener)


async def test_a_killed_worker_takes_vllms_processes_with_it(worker: tuple[EngineProcess, Listener]) -> None:
    process, listener = worker
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await listener.until(lambda: listener.exits)
    assert isinstance(listener.exits[0], EngineCrashed)
    await nothing_left(pid, listener)


async def test_the_death_of_vllms_process_fails_every_request(worker: tuple[EngineProcess, Listener]) -> None:
    process, listener = worker
    pid = process.pid
    assert pid is not None
    for handle in (1, 2, 3):
        process.submit(handle, 0, codec.encode(chat(sampling=ENDLESS)))
    await listener.until(lambda: listener.of(1, "delta"))
    (core,) = [child for child, command in group(pid).items() if "EngineCore" in command]
    os.kill(core, signal.SIGKILL)
    await listener.until(lambda: listener.exits)
    for handle in (1, 2, 3):
        assert listener.of(handle, "failed")[0]["error"]["reason"] == "engine_crashed"
    assert isinstance(listener.exits[0], EngineCrashed), "the worker goes too, so that the agent loads anew"
    await nothing_left(pid, listener)


async def test_a_worker_whose_vllm_hangs_falls_silent_so_that_the_agent_ends_it(
    worker: tuple[EngineProcess, Listener],
) -> None:
    process, listener = worker
    pid = process.pid
    assert pid is not None
    process.submit(1, 0, codec.encode(chat(sampling=ENDLESS)))
    await listener.until(lambda: listener.of(1, "delta"))
    (core,) = [child for child, command in group(pid).items() if "EngineCore" in command]
    os.kill(core, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            while process.silent_s < SILENT_S:
                await asyncio.sleep(0.2)
        assert not listener.over(1)
    finally:
        os.kill(core, signal.SIGCONT)
    await listener.until(lambda: listener.over(1))
