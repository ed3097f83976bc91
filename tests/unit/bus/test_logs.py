from __future__ import annotations

import asyncio
import json
import logging
import sys

import pytest

from llmlb.bus.logs import JsonFormatter, KeyValueFormatter, request_id_var
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


def as_json(text: str, *values: object, **fields: object) -> dict[str, object]:
    record = logging.LogRecord("llmlb.node.agent", logging.WARNING, "f", 1, text, values, None)  # type: ignore[arg-type]
    record.created, record.msecs = 0.0, 7
    for name, value in fields.items():
        setattr(record, name, value)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    made: dict[str, object] = json.loads(line)
    assert made["time"] == "1970-01-01T00:00:00.007Z"
    assert (made["level"], made["logger"]) == ("warning", "node.agent")
    return {key: value for key, value in made.items() if key not in ("time", "level", "logger")}


def test_as_json_an_event_has_its_keys_and_numbers_stay_numbers() -> None:
    assert as_json("model_loaded model=%s seconds=%.2f slots=%d", "m", 1.5, 4) == {
        "event": "model_loaded",
        "model": "m",
        "seconds": 1.5,
        "slots": 4,
    }
    assert as_json("gateway_listening address=%s:%d", "h", 1) == {"event": "gateway_listening", "address": "h:1"}
    assert as_json("model_evicted model=%s reason='memory is short'", "m")["reason"] == "'memory is short'"
    assert as_json("auth_off every peer may use it") == {"event": "auth_off", "message": "every peer may use it"}
    assert as_json("stopping") == {"event": "stopping"}


def test_as_json_a_key_never_takes_the_place_of_a_key_of_every_line() -> None:
    assert as_json("x time=%s level=%s event=%s", 1, 2, 3) == {"event": "x", "time_": 1, "level_": 2, "event_": 3}


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("Task was destroyed but it is pending", (), None),
        ("Task was %s", ("destroyed",), "Task was destroyed"),
        ("hello %(a)s", ({"a": 1},), "hello 1"),
        ("100%% of %s", ("x",), "100% of x"),
    ],
)
def test_as_json_what_is_no_event_is_a_message(text: str, values: tuple[object, ...], message: str | None) -> None:
    assert as_json(text, *values) == {"message": message or text}


def test_as_json_a_traceback_is_in_the_line() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        assert "ValueError: boom" in str(as_json("failed", exc_info=sys.exc_info())["exception"])


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("nats://me:hunter2@box:4222", "nats://****@box:4222"),
        ("hf_abcdefghijklmnop", "hf_****"),
        ("sk_abcdefghijklmnop", "sk_****"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ****"),
        ("nothing secret at all", "nothing secret at all"),
    ],
)
def test_secrets_are_cut_out_of_both_forms(secret: str, shown: str) -> None:
    assert as_json("x detail=%s", secret)["detail"] == shown
    assert line(msg="x detail=%s", args=(secret,)).endswith(f"x detail={shown}")
