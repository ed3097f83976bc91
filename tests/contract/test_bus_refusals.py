"""A server that refuses a connection which works: the process comes back by itself when it may."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.messages.infer import CancelRequest
from llmlb.bus.messages.models import ListModels, ModelList
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer

INFO = b'INFO {"server_id":"x","server_name":"x","version":"2.10.0","max_payload":1048576,"proto":1,"headers":true}\r\n'


def allow(server: NatsServer, token: str) -> None:
    """From now on the server takes this token only, from those who are connected too."""
    config = server._config.read_text().split("authorization")[0]
    server._config.write_text(f"{config}authorization {{ token: {token} }}\n")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)


async def test_a_token_that_was_changed_and_changed_back_leaves_everybody_connected(
    tmp_path: Path, make_bus: MakeBus
) -> None:
    server = NatsServer(tmp_path / "nats").start()
    node = uuid.uuid4().hex
    heard = asyncio.Event()
    ups = 0

    async def up() -> None:
        nonlocal ups
        ups += 1

    async def list_models(_: ListModels) -> ModelList:
        return ModelList(models=(), inventory=7)

    def prepare(bus: Bus) -> None:
        bus.handle(subjects.node_rpc(node, "list"), ListModels, ModelList, list_models)
        bus.on_up(up)

    async def on_cancel(_: Msg) -> None:
        heard.set()

    try:
        allow(server, "first")
        bus = await make_bus(prepare, url=f"nats://first@127.0.0.1:{server.port}")
        await bus.subscribe(subjects.cancel(node), on_cancel)
        allow(server, "second")
        await until(lambda: not bus.connected)
        allow(server, "first")
        async with asyncio.timeout(20):
            await bus.wait_up()
        assert not bus.client.is_closed
        assert (await bus.call(subjects.node_rpc(node, "list"), ListModels(), ModelList)).inventory == 7
        await bus.publish(subjects.cancel(node), CancelRequest(request_id="x"))
        async with asyncio.timeout(10):
            await heard.wait()
        assert ups == 2
    finally:
        server.stop()


async def until(condition: object, limit_s: float = 20) -> None:
    assert callable(condition)
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


class Refusing:
    """Speaks just enough of the protocol to be connected to. ``last_words`` go to the first connection that works."""

    def __init__(self, last_words: bytes, *, closes: bool) -> None:
        self.last_words, self.closes = last_words, closes
        self.connections = 0
        self._handlers: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self.server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        first = self.connections == 1
        writer.write(INFO)
        said = False
        try:
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
                    if first and not said:
                        said = True
                        writer.write(self.last_words)
                        if self.closes:
                            break
        finally:
            self._handlers.discard(task)
            writer.close()


@pytest.fixture
async def refusing(request: pytest.FixtureRequest) -> AsyncIterator[Refusing]:
    server = Refusing(*request.param[:1], closes=request.param[1])
    yield server
    await server.stop()


@pytest.mark.parametrize("refusing", [(b"-ERR 'maximum connections exceeded'\r\n", True)], indirect=True)
async def test_a_connection_that_was_one_too_many_is_tried_again(refusing: Refusing, make_bus: MakeBus) -> None:
    bus = await make_bus(url=await refusing.start())
    await until(lambda: refusing.connections == 2 and bus.connected)
    assert not bus.client.is_closed
    assert bus.reconnects == 1


@pytest.mark.parametrize("refusing", [(b"-ERR 'maximum subscriptions exceeded'\r\n", False)], indirect=True)
async def test_an_error_that_closes_nothing_ends_nothing(
    refusing: Refusing, make_bus: MakeBus, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await make_bus(url=await refusing.start())
    await until(lambda: "bus_refused error='maximum subscriptions exceeded'" in caplog.text)
    await bus.client.flush()
    assert bus.connected
    assert refusing.connections == 1


async def test_a_connection_that_is_closed_for_good_is_told_of(make_bus: MakeBus) -> None:
    """Nothing is known that leads there; a process that would live on without a bus has to end."""
    bus = await make_bus()
    lost = asyncio.Event()
    bus.on_lost = lambda _: lost.set()
    await bus.client.close()
    async with asyncio.timeout(10):
        await lost.wait()


async def test_a_reconnection_that_breaks_is_begun_again(make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = await make_bus()
    real, broken = bus.client._select_next_server, 0

    async def once() -> None:
        nonlocal broken
        broken += 1
        if broken == 1:
            raise RuntimeError("readuntil() called while another coroutine is already waiting for incoming data")
        await real()

    monkeypatch.setattr(bus.client, "_select_next_server", once)
    await bus.client._process_op_err(ConnectionResetError())
    await until(lambda: bus.connected and broken == 2)
