"""Fixtures of several modules here; a test module that has its own of the same name uses that."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import MakeBus
from tests.contract.test_dispatch import Rig
from tests.support.history_rig import bus, server
from tests.support.loops import run
from tests.support.model_rig import bus_server, hub, node, router, url

__all__ = ["bus", "bus_server", "hub", "node", "rig", "router", "run", "server", "url"]


@pytest.fixture
async def rig(make_bus: MakeBus) -> AsyncIterator[Rig]:
    """A dispatcher that waits long for the next word of a node."""
    it = Rig(make_bus)
    await it.start(stall_timeout_s=30)
    yield it
    await it.dispatcher.close()
    await it.fleet.close()
