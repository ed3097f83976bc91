"""Fixtures: a hub with one repository, a router and a node in this process, on a bus of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeBus
from tests.support.hub_catalog import CatalogHub, catalog_hub
from tests.support.model_hub import RouterRig, until
from tests.support.natsd import NatsServer
from tests.support.pulls import MIB, PullNode, gguf_bytes, pull_node

REPO, FILE = "own/model", "model-Q4_K_M.gguf"
NAME = f"{REPO}:Q4_K_M"
DATA = gguf_bytes(MIB)


@pytest.fixture
def hub() -> Iterator[CatalogHub]:
    for made in catalog_hub():
        made.add(REPO, {FILE: DATA, "sub/model-Q8_0.gguf": gguf_bytes(MIB, "Q8_0", seed=2)})
        yield made


@pytest.fixture
def bus_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A bus of this test's own: the registry is one for all nodes of a bus."""
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


@pytest.fixture
def url(bus_server: NatsServer) -> str:
    return bus_server.url


@pytest.fixture
async def router(make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str) -> AsyncIterator[RouterRig]:
    made = await RouterRig().start(make_bus, url, hub, tmp_path / "router")
    yield made
    await made.stop()


@pytest.fixture
async def node(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str, router: RouterRig
) -> AsyncIterator[PullNode]:
    async with pull_node(make_bus, tmp_path / "node", hub, url=url) as made:
        await until(lambda: router.fleet.members.state(made.node_id) == "online")
        yield made
        await made.stop()
        await made.bus.close()


async def ready(router: RouterRig, name: str = NAME) -> None:
    await until(lambda: router.states(name) == ["ready"])
