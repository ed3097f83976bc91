"""The request history in a process of its own: what a record costs there (about 100 µs) no request waits for.

The child (:mod:`llmlb.router.history_child`) reads the stream and writes ``router.db``; this process only asks the
database. They speak over a pair of sockets, which is the child's standard input: it says how it goes, one JSON object a
line, and is told when a question found the database damaged. It ends when its input does, so it can't outlive this
process; one that dies is started again, and goes on where the database says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sqlite3
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llmlb.bus.children import die_with_parent
from llmlb.bus.tasks import Background
from llmlb.router.history_query import RequestFilter
from llmlb.router.history_questions import Questions

log = logging.getLogger("llmlb.router.history_process")

COMMAND = (sys.executable, "-m", "llmlb.router.history_child")
DAMAGED = b"damaged\n"
"""Told to the child: the database is broken."""
RESTART_FIRST_S = 0.5
RESTART_MOST_S = 30.0
STEADY_S = 30.0
"""A process that lived so long is started again without delay."""
CLOSE_S = 10.0
"""What is being written is finished; after this the process is killed."""
LINE_MAX = 4096


@dataclass(frozen=True, slots=True)
class Report:
    """What the child says, whenever something of it changed. Counts are of that child alone."""

    up: bool = False
    """Records reach the database."""
    written: int = 0
    skipped: int = 0
    last_hour: int = 0


class HistoryProcess:
    """As :class:`llmlb.router.history.History`. ``environ`` is the child's: its settings, LLMLB_EMBEDDED_BUS=false."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._questions = Questions(path, self._damaged)
        self._background = Background("history")
        self._child: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        """To the child."""
        self._stopping = False
        self._said = Report()
        self._before = Report()
        """Counts of the children before this one."""

    # What it says

    @property
    def up(self) -> bool:
        """True while records reach the database."""
        return self._said.up

    @property
    def written(self) -> int:
        """Rows written since this process began."""
        return self._before.written + self._said.written

    @property
    def skipped(self) -> int:
        """Messages of the stream that are no records."""
        return self._before.skipped + self._said.skipped

    @property
    def last_hour(self) -> int:
        """Requests that ended in the last 3600 s, cluster-wide; a second behind, 5 s at rest. No child: as it was."""
        return self._said.last_hour

    @property
    def pid(self) -> int | None:
        """The child's, while it runs."""
        return None if self._child is None else self._child.pid

    async def find(self, wanted: RequestFilter) -> tuple[list[dict[str, Any]], bool]:
        """As :meth:`Questions.find`."""
        return await self._questions.find(wanted)

    async def get(self, request_id: str) -> dict[str, Any] | None:
        """As :meth:`Questions.get`."""
        return await self._questions.get(request_id)

    # The child

    def start(self) -> None:
        self._background.forever(self._watch, "watch")

    async def close(self) -> None:
        """Let it finish what it writes, within CLOSE_S. Never raises."""
        self._stopping = True
        self._questions.close()
        child = self._child
        if child is not None and self._writer is not None:
            self._writer.close()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await child.wait()
            except TimeoutError:
                log.error("history_process_killed pid=%d", child.pid)
                _kill(child)
        await self._background.close()

    async def _watch(self) -> None:
        wait_s = RESTART_FIRST_S
        while not self._stopping:
            began = time.monotonic()
            try:
                await self._run()
            except OSError as error:
                log.error("history_process_not_started error=%r", error)
            if self._stopping:
                return
            wait_s = RESTART_FIRST_S if time.monotonic() - began > STEADY_S else min(2 * wait_s, RESTART_MOST_S)
            log.error("history_process_ended restart_in_s=%.1f", wait_s)
            await asyncio.sleep(wait_s)

    async def _run(self) -> None:
        """One child, from its start to its end. Cancelled, it is killed. Raises OSError."""
        ours, childs = socket.socketpair()
        try:
            child = await asyncio.create_subprocess_exec(
                *COMMAND, env=dict(self._environ), stdin=childs.fileno(), preexec_fn=die_with_parent
            )
        except BaseException:  # closed, and raised again
            ours.close()
            raise
        finally:
            childs.close()
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_MAX)
            self._child = child
            if self._stopping:
                self._writer.close()
            while line := await reader.readline():
                self._heard(line)
            await child.wait()
        except ValueError:
            log.error("history_process_talks_nonsense pid=%d", child.pid)
        finally:
            if child.returncode is None:
                _kill(child)
            if self._writer is not None:
                self._writer.close()
            self._child = self._writer = None
            self._before = Report(written=self.written, skipped=self.skipped)
            self._said = Report(last_hour=self.last_hour)

    def _heard(self, line: bytes) -> None:
        """Raises ValueError for what is no report."""
        try:
            self._said = Report(**orjson.loads(line))
        except TypeError as error:
            raise ValueError("not a report") from error

    def _damaged(self, error: sqlite3.Error) -> None:
        log.error("history_damaged error=%r", str(error))
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(DAMAGED)


def _kill(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()
