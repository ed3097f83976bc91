"""Routers and hand-made nodes for the tests of membership."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.messages.nodes import Heartbeat
from llmlb.bus.messages.router import NodeView
from llmlb.router.control import RouterControl
from llmlb.router.fleet import Fleet
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer

ELSEWHERE = "f" * 32


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 10) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


class NoRequests:
    last_hour = 0


class Router:
    """What a router process does about membership."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.fleet = Fleet(bus)
        self.control = RouterControl(self.fleet, NoRequests())

    async def start(self) -> Router:
        await self.fleet.start()
        return self

    def view(self, node_id: str) -> NodeView | None:
        return next((view for view in self.fleet.nodes() if view.node_id == node_id), None)

    def state(self, node_id: str) -> str | None:
        view = self.view(node_id)
        return None if view is None else view.state

    def usable(self, node_id: str) -> bool:
        return self.fleet.members.usable(node_id, time.monotonic())


class HandMade:
    """Heartbeats of a node that is none."""

    def __init__(self, bus: Bus, *, machine: str = ELSEWHERE, node_id: str | None = None, instance: str = "") -> None:
        self.bus = bus
        self.node_id = node_id or uuid.uuid4().hex
        self.fields: dict[str, Any] = {
            "node_id": self.node_id,
            "instance": instance or uuid.uuid4().hex[:12],
            "version": "0",
            "name": "hand-made",
            "machine": machine,
            "gateway": "127.0.0.1:1",
            "uptime_s": 1,
            "inventory": 1,
            "models_ready": 1,
            "models_total": 1,
        }

    async def beat(self, **fields: Any) -> None:
        message = Heartbeat.model_validate({**self.fields, **fields})
        await self.bus.publish(subjects.heartbeat(self.node_id), message)

    async def beat_until(self, condition: Callable[[], Any], what: str, **fields: Any) -> None:
        try:
            async with asyncio.timeout(10):
                while not condition():
                    await self.beat(**fields)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not within 10 s: {what}") from None


class Rig:
    def __init__(self, server: NatsServer, make_bus: MakeBus) -> None:
        self.server = server
        self._make_bus = make_bus
        self._routers: list[Router] = []
        self.nodes: Bus

    async def bus(self) -> Bus:
        return await self._make_bus(url=self.server.url)

    async def router(self) -> Router:
        router = await Router(await self.bus()).start()
        self._routers.append(router)
        return router

    async def close(self) -> None:
        for router in self._routers:
            await router.fleet.close()
