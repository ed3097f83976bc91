"""A small reverse proxy as a process: ``python -m tests.support.proxy --to PORT …``. Prints its port.

It does what nginx does with its usual settings: adds to ``X-Forwarded-*``, asks with a Host of its own and, unless told
otherwise, HTTP/1.0, gives up when nothing comes for a while, and hangs up when its client does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

HEAD_MAX = 65536


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--client", help="the address that its clients are said to have")
    parser.add_argument("--proto", default="http")
    parser.add_argument("--http", default="1.0")
    parser.add_argument("--silence-s", type=float, default=60.0)
    return parser.parse_args()


def forwarded(head: bytes, peer: str, args: argparse.Namespace) -> bytes:
    """The head that goes on."""
    line, *fields = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = line.split(" ")
    kept, before, host = [], {"x-forwarded-for": "", "x-forwarded-proto": "", "x-forwarded-host": ""}, ""
    for field in fields:
        name, _, value = field.partition(":")
        if name.lower() in before:
            before[name.lower()] = value.strip() + ", "
        elif name.lower() == "host":
            host = value.strip()
        elif name.lower() != "connection":
            kept.append(field)
    kept += [
        f"Host: 127.0.0.1:{args.to}",
        "Connection: close",
        f"X-Forwarded-For: {before['x-forwarded-for']}{args.client or peer}",
        f"X-Forwarded-Proto: {before['x-forwarded-proto']}{args.proto}",
        f"X-Forwarded-Host: {before['x-forwarded-host'] or host}".rstrip(", "),
    ]
    return ("\r\n".join([f"{method} {target} HTTP/{args.http}", *kept]) + "\r\n\r\n").encode("latin-1")


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silence_s: float | None) -> None:
    """Until the end, or nothing for so long."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while True:
            async with asyncio.timeout(silence_s):
                data = await reader.read(65536)
            if not data:
                return
            writer.write(data)
            await writer.drain()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, args: argparse.Namespace) -> None:
    """One connection, one request."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        there, back = await asyncio.open_connection("127.0.0.1", args.to)
        back.write(forwarded(head, writer.get_extra_info("peername")[0], args))
        ways = [
            asyncio.ensure_future(pump(reader, back, None)),
            asyncio.ensure_future(pump(there, writer, args.silence_s)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        back.close()
    writer.close()


async def main(args: argparse.Namespace) -> None:
    server = await asyncio.start_server(lambda r, w: serve(r, w, args), "127.0.0.1", 0, limit=HEAD_MAX)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


@contextlib.contextmanager
def proxy(to: int, *options: str) -> Iterator[int]:
    """The port of one that is ended with the block."""
    popen = subprocess.Popen(
        [sys.executable, "-m", "tests.support.proxy", "--to", str(to), *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert popen.stdout is not None
        yield int(popen.stdout.readline())
    finally:
        popen.kill()
        popen.wait()
        if popen.stdout is not None:
            popen.stdout.close()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
