"""A router with its gateway in this process, and clients of its WebSocket: for tests of events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from llmlb.bus.messages.events import NodeStateChanged
from llmlb.bus.settings import Settings
from llmlb.router.gateway.app import GatewayServer, build_app
from llmlb.router.gateway.ports import Gateway
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.office import Office
from llmlb.router.live import Live
from tests.conftest import MakeBus
from tests.support.model_hub import RouterRig, until

WITHIN_S = 20.0
Message = dict[str, Any]


class LiveRig(RouterRig):
    """Fleet, models, events and gateway of one router. ``limits``: of :class:`Live`."""

    live: Live
    directory: Directory
    office: Office
    server: GatewayServer

    async def begin(self, home: Path, auth: str = "on", **limits: Any) -> LiveRig:
        """After :meth:`start`."""
        self.live = Live(self.bus, self.fleet, self.hub, "0", **limits)
        self.directory = Directory(self.bus)
        self.office = Office(self.directory, time.monotonic)
        nothing: Any = None
        self.server = GatewayServer(
            build_app(
                Gateway(
                    role="router",
                    settings=Settings.load({}, home=home, auth=auth),
                    version="0",
                    inference=nothing,
                    models=self.fleet,
                    readiness=nothing,
                    router_ops=None,
                    node_ops=None,
                    node_id=None,
                    model_ops=self.hub,
                    identity=self.office,
                    live=self.live,
                )
            )
        )
        await self.directory.start()
        await self.live.start()
        await self.server.start("127.0.0.1", 0)
        return self

    async def stop(self) -> None:
        self.live.end_clients()
        await self.server.stop(2)
        await self.live.close()
        await self.directory.close()
        self.office.close()
        await super().stop()

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.server.port}/v0/ws"

    def say(self, number: int, reason: str = "test") -> None:
        """An event about a node that is none: the ``number``-th of this test."""
        event = NodeStateChanged(
            node_id="e" * 32, name=f"n{number}", before="offline", after="online", reason=reason, instance=str(number)
        )
        self.fleet.members.announcer.tell("node", event, f"test.{number}")

    async def settled(self) -> None:
        """Until all that was said before is stored: events are stored one after the other."""
        self.say(mark := next(_marks))
        await until(lambda: any(getattr(told.event, "instance", "") == str(mark) for told in self.live.log.entries()))


_marks = itertools.count(10**9)


async def live_rig(make_bus: MakeBus, url: str, endpoint: Any, home: Path, **limits: Any) -> LiveRig:
    rig = LiveRig()
    await rig.start(make_bus, url, endpoint, home)
    return await rig.begin(home, **limits)


class Listener:
    """A client that keeps what it is sent."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.got: list[Message] = []
        self.hello: Message = {}

    async def next(self, limit_s: float = WITHIN_S) -> Message:
        async with asyncio.timeout(limit_s):
            message: Message = json.loads(await self.socket.recv())
        assert message["v"] == 1
        assert set(message) == {"v", "id", "type", "at", "data"}
        self.got.append(message)
        return message

    async def until(self, condition: Callable[[Message], Any], limit_s: float = WITHIN_S) -> Message:
        """The next one of that kind."""
        async with asyncio.timeout(limit_s):
            while not condition(message := await self.next()):
                pass
        return message

    async def of(self, kind: str, limit_s: float = WITHIN_S, **data: Any) -> Message:
        """The next of this type with this data."""
        return await self.until(
            lambda m: m["type"] == kind and all(m["data"].get(key) == value for key, value in data.items()), limit_s
        )

    async def names(self, count: int) -> list[str]:
        """Of the nodes of the next events about nodes."""
        return [(await self.of("node_changed"))["data"]["name"] for _ in range(count)]

    async def end(self, limit_s: float = WITHIN_S) -> tuple[int, str]:
        """Read until the gateway closes: the close code and its reason."""
        with pytest.raises(ConnectionClosed) as caught:
            await self.until(lambda _: False, limit_s)
        assert caught.value.rcvd is not None, "it was cut without a word"
        return caught.value.rcvd.code, caught.value.rcvd.reason

    @property
    def ids(self) -> list[int]:
        """Of all that is kept, without greetings."""
        return [m["id"] for m in self.got if m["id"] is not None and m["type"] not in ("hello", "reset")]


@contextlib.asynccontextmanager
async def listener(address: str, *, headers: dict[str, str] | None = None, **query: Any) -> AsyncIterator[Listener]:
    """Connected and greeted. ``subprotocols`` and what else :func:`connect` takes go as ``options``."""
    options = query.pop("options", {})
    url = address + (f"?{urlencode(query)}" if query else "")
    async with connect(url, additional_headers=headers, proxy=None, **options) as socket:
        it = Listener(socket)
        it.hello = await it.next()
        assert it.hello["type"] == "hello"
        yield it
