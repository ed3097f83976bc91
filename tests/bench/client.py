"""A load generator that costs next to nothing: raw sockets, bytes kept with their arrival times, parsed afterwards."""

from __future__ import annotations

import asyncio
import bisect
import json
import time
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, str]]

REQUEST_TIMEOUT_S = 300.0


@dataclass
class Answer:
    """One streamed answer. Times are of ``time.perf_counter``."""

    sent_at: float
    times: list[float] = field(default_factory=list)
    """When each piece of text arrived."""
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0

    @property
    def first_token_s(self) -> float:
        return self.times[0] - self.sent_at

    @property
    def tokens_per_s(self) -> float:
        """From the first to the last piece of text."""
        return (self.tokens - 1) / (self.times[-1] - self.times[0])


class Stream(asyncio.Protocol):
    """One request on a connection of its own. Await :meth:`answer`, or cut it off with :meth:`close`."""

    def __init__(self, request: bytes) -> None:
        self.sent_at = 0.0
        self.pieces: list[tuple[float, bytes]] = []
        self.events = 0
        """Events with text so far, roughly: for whoever waits until a stream runs."""
        self._request = request
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.sent_at = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        self.events += data.count(b'"content":"')

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def close(self) -> None:
        """Go away, as a client does that has enough."""
        if self._transport is not None:
            self._transport.abort()

    async def ended(self) -> None:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            await self._over

    async def answer(self) -> Answer:
        """The whole answer. Raises RuntimeError when it is an error."""
        await self.ended()
        return self.read()

    def read(self) -> Answer:
        """What has arrived so far. Raises RuntimeError when it is an error."""
        raw = b"".join(data for _, data in self.pieces)
        head, _, _ = raw.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(raw.decode(errors="replace")[:2000])
        ends, total = [], 0
        for _, data in self.pieces:
            total += len(data)
            ends.append(total)
        answer = Answer(self.sent_at)
        body, origin = _body(raw, len(head) + 4, chunked=b"chunked" in head.lower())
        starts = [one[0] for one in origin]
        at = 0
        while (stop := body.find(b"\n\n", at)) >= 0:
            event, last = body[at:stop], stop + 1
            at = stop + 2
            if not event.startswith(b"data: {"):
                continue
            begin, raw_begin = origin[bisect.bisect_right(starts, last) - 1]
            arrived = self.pieces[bisect.bisect_right(ends, raw_begin + last - begin)][0]
            _take(answer, json.loads(event[6:]), arrived)
        return answer


def _body(raw: bytes, at: int, *, chunked: bool) -> tuple[bytes, list[tuple[int, int]]]:
    """The body, and for each stretch of it where it begins there and in ``raw``."""
    if not chunked:
        return raw[at:], [(0, at)]
    out, origin, size = [], [], 0
    while (line := raw.find(b"\r\n", at)) >= 0:
        length = int(raw[at:line], 16)
        if not length or line + 2 + length > len(raw):
            break
        origin.append((size, line + 2))
        out.append(raw[line + 2 : line + 2 + length])
        size += length
        at = line + 2 + length + 2
    return b"".join(out), origin or [(0, at)]


def dechunked(raw: bytes, at: int, *, chunked: bool) -> bytes:
    """The body of a response that begins at ``at``, without the framing."""
    return _body(raw, at, chunked=chunked)[0]


def _take(answer: Answer, event: dict[str, Any], arrived: float) -> None:
    if "error" in event:
        raise RuntimeError(json.dumps(event["error"]))
    for choice in event["choices"]:
        if text := choice["delta"].get("content"):
            answer.text += text
            answer.times.append(arrived)
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
    if usage := event.get("usage"):
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.tokens = usage["completion_tokens"]
        answer.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]


async def begin(port: int, model: str, messages: Messages, max_tokens: int) -> Stream:
    """Send one streaming chat request, greedy, with usage."""
    body = json.dumps(
        {
            "model": model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(lambda: Stream(head.encode() + body), "127.0.0.1", port)
    return stream
