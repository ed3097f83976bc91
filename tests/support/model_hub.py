"""A router's models in this process, with its fleet and a bus of its own: for tests of what admins do with models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmlb.bus.connection import Bus
from llmlb.bus.messages.hub import HubModel, RegisterModel
from llmlb.router.fleet import Fleet
from llmlb.router.hub.hub import ModelHub
from tests.conftest import MakeBus
from tests.support.hub import LocalHub


class RouterRig:
    """Fleet and models of one router."""

    bus: Bus
    fleet: Fleet
    hub: ModelHub

    async def start(self, make_bus: MakeBus, url: str, endpoint: LocalHub, home: Path, **settings: Any) -> RouterRig:
        def prepare(bus: Bus) -> None:
            self.fleet = Fleet(bus)
            self.hub = ModelHub(bus, self.fleet)
            self.hub.register_rpc()

        # A home of its own, where its cache is.
        self.bus = await make_bus(prepare, url=url, hf_endpoint=endpoint.url, **settings)
        self.hub._cache._folder = home / "hub-cache"
        await self.fleet.start()
        await self.hub.start()
        return self

    async def stop(self) -> None:
        await self.hub.close()
        await self.fleet.close()
        await self.bus.close()

    def model(self, name: str) -> HubModel | None:
        """As GET /v0/models/hub shows it."""
        return next((model for model in self.hub.models().models if model.id == name), None)

    def states(self, name: str) -> list[str]:
        """Of its nodes, by name."""
        model = self.model(name)
        return [] if model is None else [node.lifecycle_status for node in model.nodes]

    async def register(self, repo: str, **what: Any) -> HubModel:
        return (await self.hub.register(RegisterModel(repo=repo, **what))).model


async def until(condition: Callable[[], Any], limit_s: float = 30) -> Any:
    """The first true value."""
    async with asyncio.timeout(limit_s):
        while not (value := condition()):
            await asyncio.sleep(0.02)
    return value
