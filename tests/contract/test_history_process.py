"""The history in a process of its own: real processes, a real bus, a real file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import HistoryDown
from llmlb.router import history_process as module
from llmlb.router.history_process import HistoryProcess
from llmlb.router.history_query import RequestFilter
from tests.support.records import NODE, record

WAIT_S = 30.0
"""A process of Python starts in half a second, and on a busy machine in ten."""


@contextlib.asynccontextmanager
async def running(bus: Bus) -> AsyncIterator[HistoryProcess]:
    environ = {**os.environ, **bus.settings.to_environ()}
    history = HistoryProcess(bus.settings.home / "router.db", environ)
    history.start()
    try:
        yield history
    finally:
        await history.close()


async def until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        found = true()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def send(bus: Bus, *names: str) -> None:
    for name in names:
        await bus.client.publish(subjects.request_record(NODE), codec.encode(record(request_id=name)))
    await bus.client.flush()


def shows(history: HistoryProcess, *names: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        with contextlib.suppress(HistoryDown):
            return sorted(row["request_id"] for row in (await history.find(RequestFilter()))[0]) == sorted(names)
        return False

    return check


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


async def test_a_history_process_that_is_killed_is_started_again_and_misses_nothing(bus: Bus) -> None:
    async with running(bus) as history:
        await send(bus, "a", "b")
        await until(shows(history, "a", "b"))
        await until(lambda: (history.up, history.written, history.last_hour) == (True, 2, 2))
        whole = await history.get("a")
        assert whole is not None
        assert whole["answer"] == "Tokyo"
        first = history.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: history.pid != first)
        assert (history.written, history.last_hour) == (2, 2), "what it had said is not forgotten"
        await send(bus, "c")
        await until(shows(history, "a", "b", "c"))
        await until(lambda: (history.written, history.last_hour) == (3, 3))
        second = history.pid
        assert second is not None
    assert not alive(second)


async def test_a_database_that_a_question_found_damaged_is_made_anew(bus: Bus) -> None:
    path = bus.settings.home / "router.db"
    async with running(bus) as history:
        await send(bus, "a")
        await until(shows(history, "a"))
        # Over the first pages, behind the back of everybody.
        with path.open("r+b") as file:
            file.write(b"\xff" * 100)
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        await until(shows(history, "a"))
        assert path.with_name(path.name + ".damaged").exists()


async def test_a_history_process_ends_with_the_one_that_started_it(bus: Bus, tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys; from pathlib import Path; from llmlb.router.history_process import HistoryProcess\n"
        "async def main():\n"
        "    history = HistoryProcess(Path(sys.argv[1]), dict(os.environ)); history.start()\n"
        "    while not history.pid: await asyncio.sleep(0.01)\n"
        "    print(history.pid, flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(tmp_path / "router.db")),
        env={**os.environ, **bus.settings.to_environ()},
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    async with asyncio.timeout(WAIT_S):
        pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not alive(pid))


async def test_a_process_that_can_not_start_is_tried_again_and_closing_does_not_hang(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    monkeypatch.setattr(module, "RESTART_FIRST_S", 0.01)
    async with running(bus) as history:
        await until(lambda: caplog.text.count("history_process_ended") >= 2)
        assert not history.up
