"""The floor under a Python gateway over NATS: bare Sanic → nats-py → a responder, with nothing in between.

``python -m tests.bench.floor server BUS_URL PORT`` and ``python -m tests.bench.floor responder BUS_URL``. The
responder runs the simulated engine and says the bytes that the client is to get; the server hands them on unread.
"""

from __future__ import annotations

import asyncio
import sys

import nats
import orjson
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from sanic import Request, Sanic
from sanic.response import HTTPResponse, raw

from tests.bench.scripted import Models

SUBJECT, INBOX = "floor.ask", "floor.reply"
MORE, LAST = b"+", b"."
"""The first byte of a reply."""


class Server:
    """HTTP in, one message out, replies to one subscription."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: dict[str, asyncio.Queue[bytes]] = {}
        self._count = 0

    async def start(self, port: int) -> None:
        await self._client.subscribe(f"{INBOX}.*", cb=self._reply, pending_msgs_limit=-1, pending_bytes_limit=-1)
        app = Sanic("floor", configure_logging=False)
        app.config.ACCESS_LOG = False
        app.add_route(self._chat, "/v1/chat/completions", methods=["POST"])
        server = await app.create_server(host="127.0.0.1", port=port, return_asyncio_server=True, backlog=4096)
        assert server is not None
        await server.startup()
        await server.start_serving()

    async def _reply(self, msg: Msg) -> None:
        queue = self._waiting.get(msg.subject.rpartition(".")[2])
        if queue is not None:
            queue.put_nowait(msg.data)

    async def _chat(self, request: Request) -> HTTPResponse | None:
        asked = orjson.loads(request.body)
        self._count += 1
        number = str(self._count)
        queue = self._waiting[number] = asyncio.Queue()
        await self._client.publish(SUBJECT, request.body, reply=f"{INBOX}.{number}")
        try:
            if not asked.get("stream"):
                return raw((await queue.get())[1:], content_type="application/json")
            response = await request.respond(content_type="text/event-stream")
            while True:
                data = await queue.get()
                await response.send(data[1:])
                if data[:1] == LAST:
                    break
            await response.eof()
            return None
        finally:
            del self._waiting[number]


class Responder:
    """Answers what comes over the bus."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._models = Models()
        self._out: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def run(self) -> None:
        await self._client.subscribe(SUBJECT, cb=self._ask, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await self._client.flush()
        print("ready", flush=True)
        while True:
            await self._client.publish(*await self._out.get())

    async def _ask(self, msg: Msg) -> None:
        reply = msg.reply

        def put(data: bytes, last: bool) -> None:
            self._out.put_nowait((reply, (LAST if last else MORE) + data))

        self._models.ask(msg.data, put)


async def main(role: str, url: str, port: str = "0") -> None:
    client = await nats.connect(url)
    if role == "responder":
        await Responder(client).run()
    await Server(client).start(int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
