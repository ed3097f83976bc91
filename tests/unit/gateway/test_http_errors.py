from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus import errors
from llmlb.router.gateway import sse
from llmlb.router.gateway.auth import is_loopback
from llmlb.router.gateway.http_errors import ANSWERS, answer_of, body_of, handle_exception

OURS = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, errors.LlmlbError)]


@pytest.mark.parametrize("cls", OURS)
def test_every_error_has_its_own_answer(cls: type[errors.LlmlbError]) -> None:
    assert cls in ANSWERS
    answer = answer_of(cls("x"))
    assert 400 <= answer.status < 600
    if answer.status in (429, 503):
        assert answer.retry_after_s is not None, "a client is told when to come back"


def test_the_body_is_the_one_that_clients_expect() -> None:
    body = body_of(errors.ModelUnknown("model 'x' was not found", param="model"))
    assert body == {
        "error": {
            "message": "model 'x' was not found",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_who_finds_the_queue_full_is_told_when_there_will_be_room() -> None:
    full = errors.QueueFull("full")
    full.retry_after_s = 17
    assert handle_exception(None, full).headers["Retry-After"] == "17"


def test_an_unexpected_exception_tells_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    response = handle_exception(None, RuntimeError("secret path /home/me"))
    assert response.status == 500
    assert b"secret" not in (response.body or b"")
    assert "secret" in caplog.text


def test_a_detail_is_for_the_log_only() -> None:
    response = handle_exception(None, errors.NodeLost("gone", detail="10.0.0.7:4222"))
    assert b"10.0.0.7" not in (response.body or b"")
    assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(address: str, local: bool) -> None:
    assert is_loopback(address) is local


@given(st.text())
def test_any_text_survives_the_event_framing(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    mark = sse.ChunkTemplate.mark()
    template = sse.ChunkTemplate({"choices": [{"delta": {"content": mark}}], "id": "x"})
    event = template.event(text)
    assert event == sse.data({"choices": [{"delta": {"content": text}}], "id": "x"})
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert b"\n" not in event[:-2]
    assert json.loads(event[6:])["choices"][0]["delta"]["content"] == text


@given(st.text())
def test_a_comment_is_never_more_than_a_comment(text: str) -> None:
    line = sse.comment(text.encode("utf-8", "ignore").decode())
    assert line.startswith(b": ")
    assert line.count(b"\n") == 2
    assert line.endswith(b"\n\n")
