"""The heartbeat goes on whatever the machine does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from llmlb.bus import tasks
from llmlb.bus.messages.nodes import Heartbeat
from llmlb.bus.settings import Settings
from llmlb.node import heartbeat
from llmlb.node.hardware import Hardware, HardwareReading, Memory
from llmlb.node.heartbeat import Heart
from llmlb.node.store.catalog import Catalog

READING = HardwareReading(cpu_percent=1.0, memory_total_bytes=2**34, memory_available_bytes=2**33, gpus=())


class Machine(Hardware):
    """``trouble`` is called with each reading, in its thread."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def read(self) -> HardwareReading:
        self.threads.add(threading.current_thread().name)
        self.trouble()
        return READING

    def trouble(self) -> None:
        """None, unless a test makes some."""


class Listener:
    """A bus that hears heartbeats."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings.load({}, home=home)
        self.beats = 0
        self.beaten = asyncio.Condition()

    async def publish(self, _: str, message: Heartbeat) -> None:
        async with self.beaten:
            self.beats += 1
            self.beaten.notify_all()

    async def more(self, count: int) -> None:
        """Wait for so many further heartbeats."""
        wanted = self.beats + count
        async with asyncio.timeout(20), self.beaten:
            await self.beaten.wait_for(lambda: self.beats >= wanted)


class Pool:
    def __init__(self) -> None:
        self.memory: list[Memory | None] = []

    def loaded(self) -> list[Any]:
        return []

    def look(self, memory: Memory | None) -> None:
        self.memory.append(memory)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
async def listener(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Listener]:
    for name in ("READ_S", "INTERVAL_S", "FIRST_INTERVAL_S"):
        monkeypatch.setattr(heartbeat, name, 0.01)
    monkeypatch.setattr(heartbeat, "LEAST_GAP_S", 0.001)
    monkeypatch.setattr(heartbeat, "WHOLE_S", 0.0)
    monkeypatch.setattr(tasks, "AGAIN_FIRST_S", 0.01)
    bus = Listener(tmp_path)
    heart = Heart(cast(Any, bus), "0" * 32, machine, Catalog([]), cast(Any, Pool()), load=lambda: 0)
    heart.start("127.0.0.1:1")
    yield bus
    await heart.stop()


async def test_readings_have_a_thread_that_no_copy_can_take(listener: Listener, machine: Machine) -> None:
    loop = asyncio.get_running_loop()
    machine.threads.clear()
    copy_is_done = threading.Event()
    copies = [loop.run_in_executor(None, copy_is_done.wait, 30) for _ in range(64)]
    try:
        await listener.more(3)
        assert {name.partition("_")[0] for name in machine.threads} == {"heartbeat"}
    finally:
        copy_is_done.set()
        await asyncio.gather(*copies)


async def test_a_reading_that_hangs_stops_no_heartbeat(listener: Listener, machine: Machine) -> None:
    await listener.more(1)
    goes_on = threading.Event()
    machine.trouble = lambda: goes_on.wait(30) and None  # type: ignore[method-assign,return-value]
    try:
        await listener.more(5)
    finally:
        goes_on.set()


async def test_a_reading_that_fails_is_tried_again(
    listener: Listener, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Event()

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("the driver is gone")

    machine.trouble = fail_once  # type: ignore[method-assign]
    await asyncio.to_thread(failed.wait, 20)
    await listener.more(3)
    assert caplog.text.count("the driver is gone") >= 1


async def test_a_machine_without_a_driver_is_read_as_a_whole_only_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between that the thread sleeps; what changes each second is read all the same, and the pool is told."""
    for name in ("INTERVAL_S", "FIRST_INTERVAL_S"):
        monkeypatch.setattr(heartbeat, name, 0.01)
    machine, bus, pool = Machine(), Listener(tmp_path), Pool()
    heart = Heart(cast(Any, bus), "0" * 32, machine, Catalog([]), cast(Any, pool), load=lambda: 0)
    light = HardwareReading(cpu_percent=2.0, memory_total_bytes=2**34, memory_available_bytes=2**20, gpus=())
    monkeypatch.setattr(machine, "light", lambda: light)
    machine.threads.clear()
    heart.start("127.0.0.1:1")
    await bus.more(3)
    assert {name.partition("_")[0] for name in machine.threads} == {"heartbeat"}, "the first one is"
    machine.threads.clear()
    await bus.more(3)
    assert machine.threads == set()
    assert heart.reading == light
    assert Memory(2**34, 2**20) in pool.memory
    machine.has_driver = True
    await bus.more(3)
    assert {name.partition("_")[0] for name in machine.threads} == {"heartbeat"}, "a GPU is read each time"
    await heart.stop()
