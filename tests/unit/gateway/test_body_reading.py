"""Bodies as they come from the socket: at once, in pieces, with the next request right behind them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sanic.http import Stage

from llmlb.router.gateway.http_connection import Connection
from llmlb.router.gateway.http_receiver import APART_BYTES, Receiver
from tests.unit.gateway.auth_rig import Rig


class Transport:
    """Of a connection whose bytes a test hands over."""

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        """Nothing was paused."""

    pause_reading = resume_reading


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    rig = Rig("router", tmp_path)
    made = Connection(
        loop=asyncio.get_running_loop(), app=rig.app, signal=SimpleNamespace(stopped=False), connections=set()
    )
    made.transport = cast(Any, Transport())
    made.recv_buffer = bytearray()
    yield made
    rig.office.close()


async def taken(connection: Connection, count: int, *pieces: bytes) -> bytes:
    """A body of so many bytes, all pieces of which come before its reader runs again."""
    reading = asyncio.get_running_loop().create_task(connection.receive(count))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    async with asyncio.timeout(10):
        return await reading


@pytest.mark.parametrize(
    "pieces",
    [
        (b"0123456789",),
        (b"01234", b"56789"),
        (b"0123456789next",),
        (b"0123456789", b"next"),
        (b"01234", b"56789ne", b"xt"),
        (b"0", b"123456789", b"next"),
        (b"0123456789", b"n", b"ext"),
    ],
)
async def test_a_body_is_whole_and_what_comes_behind_it_is_not_lost(
    connection: Connection, pieces: tuple[bytes, ...]
) -> None:
    assert await taken(connection, 10, *pieces) == b"0123456789"
    assert bytes(connection.recv_buffer) == b"".join(pieces)[10:]
    connection.recv_buffer.clear()
    assert await taken(connection, 3, b"abc") == b"abc", "the next one has nothing of it"


async def test_a_body_that_comes_at_once_is_not_copied(connection: Connection) -> None:
    data = b"x" * 100_000
    assert await taken(connection, len(data), data) is data


async def test_pieces_of_a_chunked_body_go_into_one(connection: Connection) -> None:
    sink = io.BytesIO(b"before")
    sink.seek(0, io.SEEK_END)
    reading = asyncio.get_running_loop().create_task(connection.receive_into(sink, 4))
    await asyncio.sleep(0)
    connection.data_received(b"body\r\n")
    await reading
    assert (sink.getvalue(), bytes(connection.recv_buffer)) == (b"beforebody", b"\r\n")


HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"


def read(connection: Connection, *pieces: bytes, stage: Stage = Stage.IDLE) -> None:
    """As an event loop reads them, into one buffer."""
    connection._http = cast(Any, SimpleNamespace(stage=stage))
    buffer = bytearray(100_000)
    receiver = Receiver(connection, buffer)
    for piece in pieces:
        receiver.get_buffer(-1)[: len(piece)] = piece
        receiver.buffer_updated(len(piece))
        buffer[:] = bytes(len(buffer))  # what was read is gone


async def test_a_body_that_comes_with_its_head_lies_apart(connection: Connection) -> None:
    body = b"y" * APART_BYTES
    read(connection, HEAD + body)
    assert (bytes(connection.recv_buffer), connection.early) == (HEAD, body)


async def test_what_comes_before_the_head_is_read_lies_behind_the_body(connection: Connection) -> None:
    body = b"y" * APART_BYTES
    read(connection, HEAD + body, b"and more")
    assert (bytes(connection.recv_buffer), connection.early) == (HEAD + body + b"and more", None)


@pytest.mark.parametrize("stage", [Stage.REQUEST, Stage.HANDLER, Stage.RESPONSE])
async def test_nothing_lies_apart_while_a_request_is_under_way(connection: Connection, stage: Stage) -> None:
    data = HEAD + b"y" * APART_BYTES
    read(connection, data, stage=stage)
    assert (bytes(connection.recv_buffer), connection.early) == (data, None)


@pytest.mark.parametrize("first", [b"", HEAD[:10], HEAD + b"short", b"\r\n\r\n" + HEAD])
async def test_what_is_no_whole_head_and_a_long_body_goes_into_the_buffer(connection: Connection, first: bytes) -> None:
    data = b"z" * APART_BYTES
    read(connection, *filter(None, (first, data)))
    assert (bytes(connection.recv_buffer), connection.early) == (first + data, None)
