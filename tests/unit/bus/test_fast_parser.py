"""The parser on the short way and nats-py's own must understand the same bytes in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.protocol.parser import Parser

from llmlb.bus.fast_parser import FastParser

STRAIGHT = b"7"


class Told:
    """A client that notes what its parser tells it."""

    def __init__(self) -> None:
        self.stats = {"in_msgs": 0, "in_bytes": 0}
        self.heard: list[Any] = []
        self._status = Client.CONNECTED

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        known = await Client()._process_headers(bytes(headers)) if headers else None
        if known is not None:
            known = {str(getattr(name, "value", name)): value for name, value in known.items()}
        self.heard.append((sid, bytes(subject), bytes(reply), bytes(data), known))

    async def _process_ping(self) -> None:
        self.heard.append("ping")

    async def _process_pong(self) -> None:
        self.heard.append("pong")

    async def _process_info(self, info: Any) -> None:
        self.heard.append(info)

    async def _process_err(self, error: str) -> None:
        self.heard.append(error)

    def straight(self, subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        self.heard.append((int(STRAIGHT), subject.encode(), b"", data, headers))


def heard(make: type[Parser], pieces: list[bytes]) -> list[Any]:
    told = Told()
    parser = make(told)
    if isinstance(parser, FastParser):
        parser.straight[STRAIGHT] = told.straight

    async def read() -> None:
        for piece in pieces:
            await parser.parse(piece)

    asyncio.run(read())
    return told.heard


HEADS = [
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 12\r\n\r\n",
    b"NATS/1.0\r\nNats-Stream: A\r\nNats-Time-Stamp: 2026-01-02T03:04:05.678901234Z\r\nempty:\r\n\r\n",
]
PAYLOADS = st.binary(max_size=300) | st.sampled_from([b"", b"\r\n", b"MSG a 7 1\r\nx\r\n", b"PING\r\n", b"x" * 70_000])


@st.composite
def operations(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["MSG", "MSG", "MSG", "REPLY", "HMSG", "PING", "PONG", "+OK", "INFO", "-ERR"]))
    sid, data = draw(st.sampled_from([b"7", b"8"])), draw(PAYLOADS)
    if kind == "MSG":
        return b"MSG a.b %b %d\r\n%b\r\n" % (sid, len(data), data)
    if kind == "REPLY":
        return b"MSG a.b 8 c.d %d\r\n%b\r\n" % (len(data), data)
    if kind == "HMSG":
        head = draw(st.sampled_from(HEADS))
        return b"HMSG a.b %b %d %d\r\n%b%b\r\n" % (sid, len(head), len(head) + len(data), head, data)
    return {
        "PING": b"PING\r\n",
        "PONG": b"PONG\r\n",
        "+OK": b"+OK\r\n",
        "INFO": b'INFO {"max_payload": 5}\r\n',
        "-ERR": b"-ERR 'No'\r\n",
    }[kind]


@given(st.lists(operations(), max_size=12), st.data())
def test_however_the_bytes_are_cut_both_parsers_tell_the_same(whole: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert heard(FastParser, pieces) == heard(Parser, pieces)


@pytest.mark.parametrize(
    "nonsense", [b"\r\n", b"NONSENSE\r\n", b"MSG a\r\nx\r\n", b"MSG a 7 x\r\n\r\n", b"HMSG a 7 3\r\n"]
)
def test_what_is_no_protocol_is_an_error_as_before(nonsense: bytes) -> None:
    with pytest.raises(nats.errors.ProtocolError):
        heard(Parser, [nonsense])
    with pytest.raises(nats.errors.ProtocolError):
        heard(FastParser, [b"MSG a 8 1\r\nx\r\n" + nonsense])


def test_a_callback_that_fails_does_not_stop_the_reading(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    parser = FastParser(told)

    def fail(subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        raise KeyError(subject)

    parser.straight[STRAIGHT] = fail
    asyncio.run(parser.parse(b"MSG a 7 1\r\nx\r\nMSG b 8 1\r\ny\r\n"))
    assert told.heard == [(8, b"b", b"", b"y", None)]
    assert "callback_failed subject=a" in caplog.text


def test_a_connection_that_is_made_anew_forgets_what_the_old_one_had_sent() -> None:
    told = Told()
    parser = FastParser(told)

    async def lost(error: str) -> None:
        parser.reset()

    told._process_err = lost  # type: ignore[method-assign]
    asyncio.run(parser.parse(b"-ERR 'Stale Connection'\r\nMSG b 8 1\r\ny\r\n"))
    assert told.heard == []
