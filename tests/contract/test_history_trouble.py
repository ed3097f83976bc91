"""A history that meets what nobody foresaw says so, and that it does not work, until it does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.streams import ensure_streams
from llmlb.router import history as history_module
from llmlb.router.history import History
from llmlb.router.recorder import Recorder
from llmlb.router.store import RequestStore
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer
from tests.unit.router.test_recorder import record


async def test_what_nobody_foresaw_is_said_once_and_the_history_is_down_until_it_works(
    tmp_path: Path, make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history_module, "EVERY_S", 0.02)
    server = NatsServer(tmp_path / "nats").start()
    bus = await make_bus(url=server.url)
    await ensure_streams(bus.client)
    real, failures = RequestStore.write, 0
    mended = False

    def write(self: RequestStore, *args: Any) -> Any:
        nonlocal failures
        if mended:
            return real(self, *args)
        failures += 1
        raise RuntimeError("as told")

    monkeypatch.setattr(RequestStore, "write", write)
    recorder, history = Recorder(bus), History(bus, tmp_path / "router.db")
    recorder.start()
    history.start()
    recorder.put(record(1))
    async with asyncio.timeout(15):
        while failures < 3:
            await asyncio.sleep(0.01)
        assert not history.up
        mended = True
        while not history.up:
            await asyncio.sleep(0.01)
    assert history.written == 1
    assert caplog.text.count("history_failed") == 1
    await recorder.close()
    await history.close()
    await bus.close()
    server.stop()
