"""The process that writes the request history: ``python -m llmlb.router.history_child``, started by a router.

Settings come from the environment, as everywhere. Its standard input is a socket to the router
(:mod:`llmlb.router.history_process`), its logs go where the router's go. It ends when that socket does, or with
SIGTERM; Ctrl+C, which a terminal sends to every process, is left to the router.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from dataclasses import asdict

# sqlite-utils takes numpy along where it is installed, for types that no row of ours has: 0.1 s of CPU time and 10 MB.
sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]

import orjson  # noqa: E402

from llmlb.bus import logs  # noqa: E402
from llmlb.bus.connection import Bus  # noqa: E402
from llmlb.bus.settings import Settings  # noqa: E402
from llmlb.bus.tasks import Background  # noqa: E402
from llmlb.router.history import History  # noqa: E402
from llmlb.router.history_process import DAMAGED, Report  # noqa: E402

REPORT_S = 0.5
NICE = 5
"""Requests go before their records where there is not enough CPU for both."""


class _Damaged(sqlite3.DatabaseError):
    """The router says that the database is broken."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


async def serve(settings: Settings, router: socket.socket) -> None:
    """Until the router's end of the socket is closed."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    reader, writer = await asyncio.open_connection(sock=router)
    bus = Bus(settings, "llmlb-history")
    history = History(bus, settings.home / "router.db")
    background = Background("history_child")
    news = asyncio.Event()
    history.on_step = news.set
    bus.open()
    history.start()
    background.start(_listen(history, reader, over), "listen")
    background.start(_report(history, writer, news), "report")
    await over.wait()
    await background.close()
    await history.close()
    await bus.close()
    writer.close()


async def _listen(history: History, reader: asyncio.StreamReader, over: asyncio.Event) -> None:
    """What the router says; the end of it is the end."""
    try:
        while line := await reader.readline():
            if line == DAMAGED:
                history.found_damaged(_Damaged("database disk image is malformed"))
                history.on_step()
    except OSError:
        pass  # the router is gone
    finally:
        over.set()


async def _report(history: History, writer: asyncio.StreamWriter, news: asyncio.Event) -> None:
    """Say how it goes, when that is other than before. A router that does not listen is waited for."""
    said = Report()
    while not writer.is_closing():
        await news.wait()
        news.clear()
        now = Report(history.up, history.written, history.skipped, history.last_hour)
        if now != said:
            said = now
            writer.write(orjson.dumps(asdict(now)) + b"\n")
            try:
                await writer.drain()
            except OSError:
                return  # the router is gone
        await asyncio.sleep(REPORT_S)


def main() -> None:
    """Raises ConfigError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    settings = Settings.load()
    logs.configure(debug=settings.debug, form=settings.log_format)
    with socket.socket(fileno=0) as router:
        asyncio.run(serve(settings, router))


if __name__ == "__main__":
    main()
