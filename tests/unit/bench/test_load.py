"""The clients of the benchmarks: what counts as an answer, whatever the pieces it comes in."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from tests.bench.backend import Connection as Served
from tests.bench.load import Answer, Connection, Load, Order, Result, request
from tests.bench.scripted import FAST, Models

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def chunked(*parts: bytes) -> bytes:
    return HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def read(raw: bytes, asked: int, *, streamed: bool = True) -> Result:
    answer, result = Answer(asked), Result()
    answer.raw.append(raw)
    answer.read_into(result, streamed=streamed)
    return result


def test_an_answer_is_whole_with_all_its_tokens_and_its_end() -> None:
    raw = chunked(event("w1 w2 "), event("w3 "), b"data: [DONE]\n\n")
    found = read(raw, 3)
    assert (found.requests, found.chunks, found.tokens, found.failed) == (1, 2, 3, 0)


@pytest.mark.parametrize(
    "raw",
    [
        chunked(event("w1 w2 "), b"data: [DONE]\n\n"),
        chunked(event("w1 w2 w3 ")),
        chunked(event("w1 w2 w3 w4 "), b"data: [DONE]\n\n"),
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}",
        b"",
    ],
    ids=["a token is missing", "no end", "a token too many", "an error", "nothing"],
)
def test_everything_else_has_failed_and_counts_in_nothing(raw: bytes) -> None:
    found = read(raw, 3)
    assert (found.requests, found.tokens, found.latencies, found.failed) == (0, 0, [], 1)
    assert found.error


def test_an_event_that_is_cut_by_the_framing_is_one_event() -> None:
    whole = event("w1 w2 ")
    raw = chunked(whole[:20], whole[20:] + b"data: [DONE]\n\n")
    assert read(raw, 2).chunks == 1


def test_lengths_of_answers_are_the_same_for_everybody_and_spread() -> None:
    order = Order("stream", 1, FAST, 1, tokens=10, tokens_most=50)
    lengths = [order.length(number) for number in range(200)]
    assert lengths == [order.length(number) for number in range(200)]
    assert set(lengths) == set(range(10, 51))
    assert Order("unary", 1, FAST, 1).length(5) == 1


@contextlib.asynccontextmanager
async def backend() -> AsyncIterator[int]:
    models = Models()
    server = await asyncio.get_running_loop().create_server(lambda: Served(models), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await models.close()


async def test_the_backend_answers_the_clients_streamed_and_not() -> None:
    async with backend() as port:
        short = await Load(Order("unary", port, FAST, 3, rounds=4), iter(range(100))).run()
        assert (short.requests, short.tokens, short.failed) == (12, 12, 0), short.error
        long = await Load(Order("stream", port, FAST, 3, rounds=2, tokens=5, tokens_most=9), iter(range(100))).run()
        assert (long.requests, long.failed) == (6, 0), long.error
        assert long.tokens == sum(Order("stream", 1, FAST, 1, tokens=5, tokens_most=9).length(n) for n in range(6))
        assert all(0 < first <= whole for first, whole in zip(long.first_tokens, long.latencies, strict=True))


async def test_many_streams_are_open_at_once_before_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    async with backend() as port:
        found = await Load(Order("hold", port, FAST, 20, tokens=100), iter(range(100))).run()
    assert (found.open, found.requests, found.failed) == (20, 20, 0), found.error
    assert json.loads(capsys.readouterr().out) == {"open": 20}


async def test_a_connection_that_is_cut_is_a_failed_answer() -> None:
    async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"a\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    order, result = Order("stream", port, FAST, 1), Result()
    answer = await connection.ask(request(order, 1), 1)
    answer.read_into(result, streamed=True)
    assert result.failed == 1
    assert "connection lost" in result.error
    server.close()
