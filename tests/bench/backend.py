"""``python -m tests.bench.backend PORT``: the simulated engine as an OpenAI-compatible HTTP server, as lean as can be.

What the direct call and the other routers talk to. It answers what those ask of a backend before they use it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import cast

import orjson
import uvloop

from llmlb.bus.errors import LlmlbError
from tests.bench.scripted import SPEEDS, Models

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "bench"} for name in SPEEDS]}
_INFO = {"model_path": next(iter(SPEEDS)), "is_generation": True, "max_total_num_tokens": 1_000_000}
PAGES = {
    b"/health": b"{}",
    b"/health_generate": b"{}",
    b"/v1/models": orjson.dumps(_MODELS),
    b"/get_model_info": orjson.dumps(_INFO),
    b"/model_info": orjson.dumps(_INFO),
    b"/get_server_info": orjson.dumps({**_INFO, "dp_size": 1}),
    b"/server_info": orjson.dumps({**_INFO, "dp_size": 1}),
    b"/version": b'{"version":"0"}',
}


def response(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


class Connection(asyncio.Protocol):
    """One request after the other; what is pipelined waits."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._cancel: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._cancel is not None:
            self._cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._cancel is None:
            self._next()

    def _next(self) -> None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or self._transport is None:
            return
        lowered = head.lower()
        at = lowered.find(b"\r\ncontent-length:")
        length = int(lowered[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        body, self._buffer = rest[:length], rest[length:]
        method, target, _ = head.split(b" ", 2)
        path = target.partition(b"?")[0]
        if method == b"POST" and path == b"/v1/chat/completions":
            self._chat(body)
        else:
            page = PAGES.get(path)
            self._transport.write(response(b"{}", b"404 Not Found") if page is None else response(page))
            self._next()

    def _chat(self, body: bytes) -> None:
        assert self._transport is not None
        streaming = orjson.loads(body).get("stream")
        if streaming:
            self._transport.write(CHUNKED)
        try:
            self._cancel = self._models.ask(body, self._put_chunk if streaming else self._put_whole)
        except (KeyError, LlmlbError) as error:
            self._transport.write(response(orjson.dumps({"error": {"message": repr(error)}}), b"400 Bad Request"))

    def _put_whole(self, data: bytes, last: bool) -> None:
        if self._transport is not None:
            self._transport.write(response(data))
        self._over()

    def _put_chunk(self, data: bytes, last: bool) -> None:
        if self._transport is not None:
            self._transport.write(b"%x\r\n%s\r\n%s" % (len(data), data, b"0\r\n\r\n" if last else b""))
        if last:
            self._over()

    def _over(self) -> None:
        self._cancel = None
        self._next()


async def main(port: int) -> None:
    models = Models()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(models), "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
