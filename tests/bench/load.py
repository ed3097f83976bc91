"""``python -m tests.bench.load``: the clients, in a process of their own. JSON lines in, JSON lines out.

In: an :class:`Order`. Out: a :class:`Result`; for ``hold`` first a line ``{"open": n}`` while the streams run. Answers
are kept as bytes and read when the measurement is over.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import uvloop

from tests.bench.client import dechunked

STUCK_S = 150.0
"""An answer that takes longer is an error."""
CONNECTING = 64
"""Streams that are opened at the same time by ``hold``."""

CONTENT = re.compile(rb'"content": ?"w')
"""A piece of text in an event; every token of the simulated engine begins with a w."""
TOKEN = re.compile(rb"w\d+ ")


@dataclass(frozen=True)
class Order:
    """What to do. ``unary``, ``stream``: ``clients`` ask one request after the other for ``seconds``.

    ``rounds``: so many requests of each client instead. ``hold``: so many streams at once, each to its end. Lengths of
    answers are between ``tokens`` and ``tokens_most``, the same row of them for every target.
    """

    kind: Literal["unary", "stream", "hold"]
    port: int
    model: str
    clients: int
    seconds: float = 0.0
    rounds: int = 0
    tokens: int = 1
    tokens_most: int = 0
    begin_over_s: float = 0.0
    """In so many seconds the clients begin, one after the other; 0: all at once. Not of ``hold``."""

    def length(self, number: int) -> int:
        """Tokens of request ``number``."""
        span = max(0, self.tokens_most - self.tokens) + 1
        return self.tokens + number * 7919 % span


@dataclass
class Result:
    """What came of an order. Times in milliseconds, except ``seconds``: from the first request to the last end."""

    seconds: float = 0.0
    requests: int = 0
    chunks: int = 0
    """Events with text."""
    tokens: int = 0
    latencies: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    open: int = 0
    failed: int = 0
    """Answers that were not whole; they count in nothing else."""
    error: str = ""
    """Of the first of them."""


class Answer:
    """One answer as it came."""

    def __init__(self, asked: int) -> None:
        self.asked = asked
        self.sent_at = time.perf_counter()
        self.first_at = 0.0
        self.ended_at = 0.0
        self.raw: list[bytes] = []
        self.lost = ""

    def read_into(self, result: Result, *, streamed: bool) -> None:
        raw = b"".join(self.raw)
        head, _, _ = raw.partition(b"\r\n\r\n")
        body = dechunked(raw, len(head) + 4, chunked=b"chunked" in head.lower())
        tokens = len(TOKEN.findall(body))
        whole = tokens == self.asked and (not streamed or b"data: [DONE]" in body)
        if self.lost or b" 200" not in head[:16] or not whole:
            result.failed += 1
            result.error = result.error or f"{self.lost} {tokens} of {self.asked} tokens; {raw[-200:]!r}"
            return
        result.requests += 1
        result.tokens += tokens
        result.chunks += len(CONTENT.findall(body))
        result.latencies.append(1000 * (self.ended_at - self.sent_at))
        result.first_tokens.append(1000 * (self.first_at - self.sent_at))


class Connection(asyncio.Protocol):
    """One connection, kept alive, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._over: asyncio.Future[None] | None = None
        self._left = -1
        """Bytes of the body still to come; -1: the head is not read, -2: chunked."""
        self._head = self._tail = b""
        self.on_first = lambda: None

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and self._left != 0:
            self._answer.lost = f"connection lost: {exc!r}"
        self._done()

    def _done(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def data_received(self, data: bytes) -> None:
        now, answer = time.perf_counter(), self._answer
        if answer is None:
            return
        answer.raw.append(data)
        if not answer.first_at and CONTENT.search(data):
            answer.first_at = now
            self.on_first()
        if self._left == -1:
            self._begin(data)
        elif self._left > 0:
            self._left = max(0, self._left - len(data))
        elif self._left == -2:
            self._tail = (self._tail + data)[-7:]
            if self._tail == b"\r\n0\r\n\r\n":
                self._left = 0
        if self._left == 0:
            answer.ended_at = now
            self._done()

    def _begin(self, data: bytes) -> None:
        self._head += data
        head, found, rest = self._head.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        at = lowered.find(b"\r\ncontent-length:")
        if at >= 0:
            self._left = max(0, int(lowered[at + 17 :].split(b"\r\n", 1)[0]) - len(rest))
        else:
            self._tail = self._head[-7:]
            self._left = 0 if self._tail == b"\r\n0\r\n\r\n" else -2

    async def ask(self, request: bytes, asked: int) -> Answer:
        assert self._transport is not None
        self._left, self._head, self._tail = -1, b"", b""
        self._over = asyncio.get_running_loop().create_future()
        self._answer = answer = Answer(asked)
        self._transport.write(request)
        try:
            async with asyncio.timeout(STUCK_S):
                await self._over
        except TimeoutError:
            answer.lost = f"stuck for {STUCK_S:.0f} s"
            self.close()
        self._answer = None
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def request(order: Order, number: int) -> bytes:
    """A question that no other is like."""
    asked: dict[str, Any] = {
        "model": order.model,
        "messages": [{"role": "user", "content": f"hello there, this is number {number} of the questions"}],
        "max_tokens": order.length(number),
        "stream": order.kind != "unary",
    }
    body = json.dumps(asked).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return b"%sAuthorization: Bearer sk-bench\r\nContent-Length: %d\r\n\r\n%s" % (head, len(body), body)


class Load:
    """One order being carried out."""

    def __init__(self, order: Order, numbers: Iterator[int]) -> None:
        self._order, self._numbers = order, numbers
        self._answers: list[Answer] = []
        self._until = time.perf_counter() + order.seconds
        self._first_of_all = asyncio.Event()
        self._open = 0

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._order.port)
        return connection

    async def _client(self, place: int) -> None:
        """``place``: 0 for the first one."""
        connection = await self._connect()
        await asyncio.sleep(self._order.begin_over_s * place / self._order.clients)
        for turn in itertools.count():
            over = turn >= self._order.rounds if self._order.rounds else time.perf_counter() >= self._until
            if over:
                break
            number = next(self._numbers)
            if not connection.usable:
                connection = await self._connect()
            asked = self._order.length(number)
            self._answers.append(await connection.ask(request(self._order, number), asked))
        connection.close()

    async def _held(self, gate: asyncio.Semaphore) -> None:
        number = next(self._numbers)
        first = asyncio.Event()
        async with gate:
            connection = await self._connect()
            connection.on_first = first.set
            asking = asyncio.ensure_future(connection.ask(request(self._order, number), self._order.length(number)))
            waiting = asyncio.ensure_future(first.wait())
            await asyncio.wait([asking, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            self._open += first.is_set()
            if self._open == self._order.clients or asking.done():
                self._first_of_all.set()
        self._answers.append(await asking)
        self._first_of_all.set()
        connection.close()

    async def _say_open(self) -> int:
        """Once all are open, or one has ended before that."""
        await self._first_of_all.wait()
        opened = self._open - len(self._answers)
        print(json.dumps({"open": opened}), flush=True)
        return opened

    async def run(self) -> Result:
        result, began = Result(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            if self._order.kind == "hold":
                said = group.create_task(self._say_open())
                gate = asyncio.Semaphore(CONNECTING)
                for _ in range(self._order.clients):
                    group.create_task(self._held(gate))
            else:
                for place in range(self._order.clients):
                    group.create_task(self._client(place))
        result.seconds = time.perf_counter() - began
        for answer in self._answers:
            answer.read_into(result, streamed=self._order.kind != "unary")
        result.open = said.result() if self._order.kind == "hold" else 0
        return result


async def main() -> None:
    numbers = itertools.count()
    print(json.dumps("ready"), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = Order(**json.loads(line))
        print(json.dumps(dataclasses.asdict(await Load(order, numbers).run())), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
