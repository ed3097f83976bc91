"""Buses of a test's own, on asyncio's event loop and on uvloop's. The fixtures are in tests/contract/conftest.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from llmlb.bus.connection import Bus
from llmlb.bus.settings import Settings

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs the test's own coroutine, for 30 s at the most."""

    async def limited(main: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(30):
            await main

    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda main: runner.run(limited(main))


@contextlib.asynccontextmanager
async def connected(url: str, home: Path) -> AsyncIterator[Bus]:
    bus = Bus(Settings.load({}, bus_url=url, embedded_bus=False, home=home), "test")
    bus.open()
    try:
        await bus.wait_up()
        yield bus
    finally:
        await bus.close()
