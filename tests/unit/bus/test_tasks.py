"""Loops that the rest can't do without are begun again when they fail."""

from __future__ import annotations

import asyncio

import pytest

from llmlb.bus import tasks
from llmlb.bus.errors import ConfigError
from llmlb.bus.tasks import Background


async def test_a_loop_that_fails_is_begun_again_after_a_growing_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_FIRST_S", 0.001)
    begun, works = 0, asyncio.Event()

    async def loop() -> None:
        nonlocal begun
        begun += 1
        if begun < 4:
            raise RuntimeError("as told")
        works.set()
        await asyncio.Event().wait()

    background = Background("test")
    background.forever(loop, "loop")
    async with asyncio.timeout(5):
        await works.wait()
    await background.close()
    said = [record for record in caplog.records if "background_loop_failed task=test.loop" in record.getMessage()]
    assert begun == 4
    assert len(said) == 3, "one line each time"
    assert all(record.exc_info for record in said)


async def test_a_loop_that_returns_or_needs_a_person_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    begun = []

    async def returns() -> None:
        begun.append("returns")

    async def refuses() -> None:
        begun.append("refuses")
        raise ConfigError("no such folder")

    background = Background("test")
    background.forever(returns, "a")
    background.forever(refuses, "b")
    async with asyncio.timeout(5):
        await background.settle()
    assert sorted(begun) == ["refuses", "returns"]
    assert "no such folder" in caplog.text


async def test_closing_ends_a_loop_also_while_it_waits_to_be_begun_again() -> None:
    failed = asyncio.Event()

    async def loop() -> None:
        failed.set()
        raise RuntimeError("as told")

    background = Background("test")
    background.forever(loop, "loop")
    async with asyncio.timeout(5):
        await failed.wait()
        await background.close()
