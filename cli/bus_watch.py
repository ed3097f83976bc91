"""``llmlb bus watch``: reads along on the bus and prints a line a message. It sends nothing and stores nothing.

What is printed goes through a queue of ``QUEUE_LINES`` to a thread, so that a reader that is slow (a pipe, a stopped
terminal) does not hold the connection up; when the queue is full, messages are left out and their number is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from nats.aio.msg import Msg

from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusDown
from llmlb.bus.settings import Settings
from llmlb.cli.bus_view import BusView, Seen, Wanted, heartbeat

QUEUE_LINES = 10_000
CONNECT_S = 5.0
SHORT = 8
"""Digits of an id that are shown."""


class Writer:
    """Lines to standard output, from a thread that dies with the process. ``gone``: nobody reads any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, left_out: Callable[[int], str]) -> None:
        """``left_out`` says how many lines are missing."""
        self._lines: queue.Queue[bytes] = queue.Queue(QUEUE_LINES)
        self._loop = loop
        self._left_out = 0
        self._say = left_out
        self.gone = asyncio.Event()
        threading.Thread(target=self._run, name="bus-watch-writer", daemon=True).start()

    def put(self, line: str) -> None:
        """One line; left out when the queue is full."""
        if self._left_out and not self._lines.full():
            self._lines.put_nowait(self._say(self._left_out).encode() + b"\n")
            self._left_out = 0
        try:
            self._lines.put_nowait(line.encode("utf-8", "replace") + b"\n")
        except queue.Full:
            self._left_out += 1

    def _run(self) -> None:
        # Not sys.stdout: a thread that blocks in it would hold its lock while the process ends.
        with contextlib.suppress(OSError, RuntimeError, AttributeError):
            out = sys.stdout.fileno()
            while True:
                data = self._lines.get()
                while data:
                    data = data[os.write(out, data) :]
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.gone.set)


def line_of(seen: Seen, moment: float, *, bodies: bool) -> str:
    """``14:17:12.042  infer     3f2a91c0  7c1b22aa  chat smollm2, 2 messages …``"""
    clock = time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03d}"
    line = f"{clock}  {seen.kind:<9} {(seen.node or '-')[:SHORT]:<8}  {(seen.request or '-')[:SHORT]:<8}  {seen.text}"
    if bodies and seen.body is not None:
        line += "\n" + "\n".join(
            f"    {row}" for row in json.dumps(seen.body, indent=2, ensure_ascii=False).split("\n")
        )
    return line


def json_of(seen: Seen, moment: float, *, bodies: bool) -> str:
    """One object a line. Without ``bodies`` it has no text of a prompt or an answer."""
    said = {
        "time": round(moment, 3),
        "subject": seen.subject,
        "kind": seen.kind,
        "type": seen.type,
        "node_id": seen.node,
        "model": seen.model,
        "request_id": seen.request,
        "size_bytes": seen.size_bytes,
        "text": seen.text,
    }
    if bodies:
        said["body"] = seen.body
    return json.dumps(said, ensure_ascii=False)


def missing(count: int) -> str:
    return f"… {count} messages were left out: the reader is too slow"


def missing_json(count: int) -> str:
    return json.dumps({"left_out": count})


def run(settings: Settings, wanted: Wanted, *, as_json: bool, bodies: bool) -> int:
    """Until Ctrl+C, or nobody reads. Raises BusDown when no bus answers within ``CONNECT_S``, ConfigError."""
    form = json_of if as_json else line_of

    async def main() -> int:
        writer, view = Writer(asyncio.get_running_loop(), missing_json if as_json else missing), BusView()

        async def take(msg: Msg) -> None:
            seen = view.read(msg.subject, msg.data, msg.reply, msg.headers)
            if wanted.takes(seen):
                shown = heartbeat(seen) if seen.kind == "heartbeat" else seen
                writer.put(form(shown, time.time(), bodies=bodies))

        # Never the one that starts a bus: who only looks must not become its owner.
        bus = Bus(replace(settings, embedded_bus=False), "llmlb-watch")
        bus.open()
        try:
            await _up(bus)
            for subject in (subjects.everything(), *map(subjects.bucket_changes, subjects.BUCKETS)):
                await bus.subscribe(subject, take)
            if sys.stderr.isatty():
                print(f"watching {settings.bus_url_shown}, Ctrl+C ends it", file=sys.stderr)
            await writer.gone.wait()
        finally:
            await bus.close()
        return 0

    return asyncio.run(main())


async def _up(bus: Bus) -> None:
    try:
        async with asyncio.timeout(CONNECT_S):
            await bus.wait_up()
    except TimeoutError:
        shown = bus.settings.bus_url_shown
        raise BusDown(f"no bus answers at {shown} (LLMLB_BUS_URL); llmlb serve starts one on this machine") from None
