"""Further gateway processes: one that can't be started now is started later."""

from __future__ import annotations

import asyncio
import errno
import sys
from pathlib import Path

import pytest

from llmlb.bus.settings import Settings
from llmlb.cli import workers as workers_module
from llmlb.cli.workers import Workers


async def test_a_worker_that_could_not_be_started_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "RESTART_FIRST_S", 0.01)
    workers = Workers(Settings.load({}, embedded_bus=False, home=tmp_path), 1, "group")
    tried = 0

    async def spawn(number: int, port: int) -> asyncio.subprocess.Process:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise OSError(errno.EAGAIN, "as told")
        return await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")

    monkeypatch.setattr(workers, "_spawn", spawn)
    workers.start(1)
    try:
        async with asyncio.timeout(10):
            while not workers._running:
                await asyncio.sleep(0.01)
    finally:
        await workers.stop()
    assert tried == 3
    assert caplog.text.count("gateway_worker_ended number=1 error=") == 2
