"""A bus of its own for a test of the history: the stream of records has one name on each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from llmlb.bus.connection import Bus
from llmlb.bus.streams import ensure_streams
from tests.support.natsd import NatsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


@pytest.fixture
async def bus(server: NatsServer, make_bus: Callable[..., Awaitable[Bus]]) -> Bus:
    """Connected, with its streams."""
    bus = await make_bus(url=server.url)
    await ensure_streams(bus.client)
    return bus
