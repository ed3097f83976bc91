"""What goes to the parser at once, and what goes nats-py's way, must come out as one stream in its order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from unittest.mock import AsyncMock, Mock

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from llmlb.bus.direct_transport import DirectProtocol, DirectTransport
from llmlb.bus.fast_parser import TAKE_MOST
from llmlb.bus.lasting_client import LastingClient
from tests.unit.bus.test_fast_parser import STRAIGHT, Told, heard, operations


class Reading(LastingClient):
    """A client that is connected to nothing: it notes what its parser tells it. Each thing takes it a moment."""

    reader: asyncio.Task[None]

    def __init__(self) -> None:
        super().__init__()
        self.told = Told()
        self.heard = self.told.heard
        self.parser.straight[STRAIGHT] = self.told.straight
        self._status = LastingClient.CONNECTED
        self._transport = self._direct
        self.ends: list[Exception] = []
        self._error_cb = AsyncMock()
        self.in_direct = 0
        self.take_reads()

    def take_reads(self) -> None:
        """As a new connection does."""
        reader = asyncio.StreamReader(limit=32768)
        self.protocol = DirectProtocol(reader, self._noted_take)
        self.socket = Mock(asyncio.Transport)
        self.socket.get_extra_info.return_value = None
        self.socket.is_closing.return_value = False
        self.protocol.connection_made(self.socket)
        self._direct._use(self.socket, self.protocol, reader)

    async def end(self) -> None:
        """The other side has hung up, and all that came before was read."""
        self.protocol.eof_received()
        await self.reader

    def let_go(self) -> None:
        """As a connection that is lost."""
        self.socket.is_closing.return_value = True

    def _noted_take(self, data: bytes) -> bytes:
        rest = self.parser.take(data)
        self.in_direct += len(data) - len(rest)
        return rest

    async def _process_msg(self, *args: Any) -> None:
        await asyncio.sleep(0)
        await self.told._process_msg(*args)

    async def _process_ping(self) -> None:
        await asyncio.sleep(0)
        self.heard.append("ping")

    async def _process_pong(self) -> None:
        self.heard.append("pong")

    async def _process_info(self, info: Any, initial_connection: bool = False) -> None:
        await asyncio.sleep(0)
        self.heard.append(info)

    async def _process_err(self, err_msg: str) -> None:
        self.heard.append(err_msg)

    async def _process_op_err(self, e: Exception) -> None:
        self.ends.append(e)
        self.parser.reset()
        self.let_go()


@contextlib.asynccontextmanager
async def reading_client() -> AsyncIterator[Reading]:
    """Its reader runs, and waits for data."""
    client = Reading()
    client.reader = asyncio.ensure_future(client._read_loop())
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(10):
            yield client
    finally:
        client.let_go()
        client.reader.cancel()
        await asyncio.wait([client.reader])


def read(pieces: list[bytes], steps: Callable[[], int]) -> Reading:
    """What a client hears of these reads, with so many steps of the event loop after each."""

    async def main() -> Reading:
        async with reading_client() as client:
            for piece in pieces:
                if not client.reader.done():
                    client.protocol.data_received(piece)
                for _ in range(steps()):
                    await asyncio.sleep(0)
            await client.end()
        return client

    return asyncio.run(main())


@given(st.lists(operations(), max_size=10), st.data())
def test_wherever_the_reads_end_and_however_busy_the_reader_is_all_is_heard_in_order(
    whole: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    client = read([piece for piece in pieces if piece], lambda: data.draw(st.integers(0, 6)))
    assert client.heard == heard(Parser, [stream])
    assert [type(end) for end in client.ends] == [nats.errors.UnexpectedEOF]


MIXED = (
    b"MSG a.b 7 3\r\nabc\r\nMSG a.b 8 3\r\nabc\r\nMSG a.b 8 r 0\r\n\r\nPING\r\nMSG a.b 7 2\r\n\r\n\r\n"
    b"HMSG a.b 7 21 22\r\nNATS/1.0\r\nName: 1\r\n\r\n_\r\nMSG a.b 8 1\r\nx\r\n+OK\r\nMSG a.b 7 5\r\nPING\r\r\n"
    b"INFO {}\r\nMSG a.b 7 1\r\ny\r\n"
)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_reads_may_end_after_any_byte(steps: int) -> None:
    expected = heard(Parser, [MIXED])
    assert len(expected) == 10
    for size in (1, 2, 3, 7):
        assert read([MIXED[at : at + size] for at in range(0, len(MIXED), size)], lambda: steps).heard == expected
    for at in range(1, len(MIXED)):
        assert read([MIXED[:at], MIXED[at:]], lambda: steps).heard == expected


def test_whole_messages_are_heard_before_the_socket_has_returned() -> None:
    async def main() -> None:
        async with reading_client() as client:
            client.protocol.data_received(
                b"MSG a 7 1\r\nx\r\nHMSG b 7 16 17\r\nNATS/1.0 503\r\n\r\ny\r\nMSG c 8 1\r\nz\r\n"
            )
            assert [one[1] for one in client.heard] == [b"a", b"b"]
            client.protocol.data_received(b"MSG d 7 1\r\nx\r\n")
            assert len(client.heard) == 2, "it waits for what came before it"
            while len(client.heard) < 4:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            client.protocol.data_received(b"MSG e 7 1\r\nx\r\n")
            assert [one[1] for one in client.heard] == [b"a", b"b", b"c", b"d", b"e"]
            await client.end()

    asyncio.run(main())


def test_what_is_read_faster_than_it_is_worked_on_pauses_the_socket() -> None:
    async def main() -> None:
        async with reading_client() as client:
            large = b"MSG a 7 %d\r\n" % TAKE_MOST + b"x" * TAKE_MOST + b"\r\n"
            client.protocol.data_received(large)
            client.socket.pause_reading.assert_called_once()
            client.socket.resume_reading.assert_not_called()
            assert not client.heard
            while not client.heard:
                await asyncio.sleep(0)
            client.socket.resume_reading.assert_called_once()
            await client.end()

    asyncio.run(main())


@pytest.mark.parametrize("status", [LastingClient.CLOSED, LastingClient.RECONNECTING])
def test_nothing_is_taken_of_a_connection_that_is_given_up(status: int) -> None:
    async def main() -> None:
        async with reading_client() as client:
            client._status = status
            client.reader.cancel()
            client.protocol.data_received(b"MSG a 7 1\r\nx\r\n")
            await asyncio.wait([client.reader])
            assert not client.heard

    asyncio.run(main())


@pytest.mark.parametrize("raised", [KeyError("x"), asyncio.CancelledError()])
def test_a_callback_that_raises_costs_its_own_message(raised: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def fail(subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        raise raised

    async def main() -> None:
        async with reading_client() as client:
            client.parser.straight[b"6"] = fail
            client.protocol.data_received(b"MSG a 6 1\r\nx\r\nMSG b 7 1\r\ny\r\n")
            client.protocol.data_received(b"MSG c 8 1\r\nx\r\nMSG a 6 1\r\nx\r\nMSG d 7 1\r\ny\r\n")
            await client.end()
            assert [one[1] for one in client.heard] == [b"b", b"c", b"d"]

    asyncio.run(main())
    assert caplog.text.count("callback_failed subject=a") == 2


@pytest.mark.parametrize("nonsense", [b"NONSENSE\r\n", b"MSG a 7 %b\r\n\r\n" % (b"9" * 5000), b"MSG a 7 x\r\n\r\n"])
def test_what_is_no_protocol_ends_the_connection_and_is_said(nonsense: bytes) -> None:
    client = read([b"MSG a 7 1\r\nx\r\n" + nonsense], lambda: 3)
    assert len(client.heard) == 1
    assert len(client.ends) == 1


@pytest.mark.parametrize("broken", [RuntimeError("a bug"), asyncio.CancelledError(), ConnectionResetError()])
def test_a_connection_that_breaks_by_whatever_error_is_made_anew(broken: BaseException) -> None:
    async def main() -> None:
        async with reading_client() as client:
            client.protocol.connection_lost(broken)  # type: ignore[arg-type]  # event loops hand on what was raised
            await client.reader
            assert isinstance(client.ends[0], ConnectionResetError)

    asyncio.run(main())


def test_a_writer_is_told_when_nothing_can_be_written_at_once() -> None:
    async def main() -> None:
        async with reading_client() as client:
            assert not DirectTransport(bytes).write_now([b"x"])
            direct = client._direct
            assert direct.write_now([b"a", memoryview(b"b")])
            client.socket.writelines.assert_called_once_with([b"a", b"b"])
            client.protocol.pause_writing()
            assert not direct.write_now([b"x"])
            client.protocol.resume_writing()
            client.socket.writelines.side_effect = RuntimeError("closed")
            assert not direct.write_now([b"x"])
            client.socket.writelines.side_effect = None
            client.let_go()
            assert not direct.write_now([b"x"])

    asyncio.run(main())
