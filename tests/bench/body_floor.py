"""What a large body costs at least in a Python gateway over NATS: bare Sanic, ``orjson.loads``, one publish.

``python -m tests.bench.body_floor server BUS_URL PORT`` and ``python -m tests.bench.body_floor responder BUS_URL``. The
responder answers each body with ``{}``, whatever is in it. Nothing is validated, kept or searched for secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import nats
import uvloop
from nats.aio.msg import Msg

from tests.bench.children import announced, environ, module
from tests.bench.floor import LAST, SUBJECT, Server
from tests.support.cluster import free_port
from tests.support.natsd import NatsServer


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[int, int]]:
    """Port and process id of the server, with a bus of its own."""
    bus, port, command = NatsServer(folder), free_port(), module("tests.bench.body_floor")
    bus.start()
    try:
        with (
            announced([*command, "responder", bus.url], folder / "responder.log", environ(folder)),
            announced([*command, "server", bus.url, str(port)], folder / "server.log", environ(folder)) as popen,
        ):
            yield port, popen.pid
    finally:
        bus.stop()


async def main(role: str, url: str, port: str = "0") -> None:
    client = await nats.connect(url)
    if role == "server":
        await Server(client).start(int(port))
    else:

        async def answer(msg: Msg) -> None:
            await client.publish(msg.reply, LAST + b"{}")

        await client.subscribe(SUBJECT, cb=answer)
        await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
