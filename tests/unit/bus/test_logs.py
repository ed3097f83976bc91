from __future__ import annotations

import asyncio
import logging
import sys

import pytest

from llmlb.bus.logs import KeyValueFormatter, request_id_var
from llmlb.bus.tasks import Background


def line(**fields: object) -> str:
    record = logging.LogRecord("llmlb.node.agent", logging.INFO, "f", 1, "model_loaded model=%s", ("m",), None)
    record.created, record.msecs = 0.0, 7
    for name, value in fields.items():
        setattr(record, name, value)
    return KeyValueFormatter().format(record)


def test_a_line_has_time_level_place_and_event() -> None:
    assert line() == "1970-01-01T00:00:00.007Z INFO    node.agent model_loaded model=m"


def test_a_line_names_the_http_request_it_belongs_to() -> None:
    token = request_id_var.set("abc")
    try:
        assert line().endswith(" http_request=abc")
    finally:
        request_id_var.reset(token)


def test_an_exception_is_in_the_log() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        assert "ValueError: boom" in line(exc_info=sys.exc_info())


async def test_a_background_task_that_fails_is_logged_and_its_siblings_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    background = Background("test")
    done: list[str] = []

    async def fail() -> None:
        raise RuntimeError("boom")

    async def work() -> None:
        await asyncio.sleep(0.02)
        done.append("worked")

    background.start(fail(), "fail")
    await background.start(work(), "work")
    assert done == ["worked"]
    assert "background_task_failed task=test.fail" in caplog.text
    await background.close()


async def test_closing_ends_what_runs_and_takes_nothing_more() -> None:
    background = Background("test")
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    background.start(forever(), "forever")
    await asyncio.sleep(0)
    await background.close()
    assert ended == ["ended"]
    with pytest.raises(RuntimeError, match="closed"):
        background.start(forever(), "late")
