"""What the record of a request keeps of its answer: text, thinking and calls, within bounds and without secrets."""

from __future__ import annotations

import json

import orjson
import pytest

from llmlb.bus.messages.infer import Delta, InferRequest, ToolCallPiece
from llmlb.bus.messages.requests import RequestRecord
from llmlb.router.call import Call
from llmlb.router.journey import Attempt, Journey
from llmlb.router.redaction import BODY_MAX

KEY = "sk_" + "k" * 43


@pytest.fixture
def journey() -> Journey:
    it = Journey(InferRequest(request_id="r", model="m", kind="chat"), Call(), "g")
    it.attempts.append(Attempt("n" * 32, "m", "first", 0.0))
    return it


def delta(**fields: object) -> Delta:
    return Delta.model_validate({"request_id": "r", "seq": 1, "text": "", **fields})


def read(journey: Journey) -> RequestRecord:
    """The record as those read it who get it."""
    return RequestRecord.model_validate_json(orjson.dumps(journey.record(), default=lambda value: value.model_dump()))


def test_thinking_text_and_calls_in_pieces_are_kept_whole(journey: Journey) -> None:
    calls = [
        ToolCallPiece(index=0, id="a", name="add", arguments='{"x"'),
        ToolCallPiece(index=0, arguments=": 1}"),
        ToolCallPiece(index=1, id="b", name="now", arguments=""),
    ]
    journey.deliver(delta(reasoning="Hm"))
    journey.deliver(delta(reasoning="m.", text="So"))
    journey.deliver(delta(text=": "))
    for call in calls:
        journey.deliver(delta(tool_calls=(call,)))
    record = read(journey)
    assert (record.reasoning, record.answer) == ("Hmm.", "So: ")
    assert [(call.id, call.name, call.arguments) for call in record.tool_calls] == [
        ("a", "add", '{"x": 1}'),
        ("b", "now", ""),
    ]


def test_secrets_that_come_in_pieces_are_kept_nowhere(journey: Journey) -> None:
    for at in range(0, len(KEY), 3):
        piece = KEY[at : at + 3]
        journey.deliver(delta(text=piece, reasoning=piece))
    arguments = json.dumps({"password": "hunter2", "host": "db"})
    for at in range(0, len(arguments), 5):
        piece = ToolCallPiece(index=0, id="a", name="login", arguments=arguments[at : at + 5])
        journey.deliver(delta(tool_calls=(piece,)))
    record = read(journey)
    assert record.answer == record.reasoning == "(cut)"
    assert json.loads(record.tool_calls[0].arguments) == {"password": "(cut)", "host": "db"}


def test_an_answer_without_end_is_kept_within_bounds(journey: Journey) -> None:
    text = "tree " * 200
    for _ in range(3 * BODY_MAX // len(text)):
        journey.deliver(delta(text=text))
        journey.deliver(delta(reasoning=text))
        journey.deliver(delta(tool_calls=(ToolCallPiece(index=0, id="a", name="f", arguments=text),)))
    record = read(journey)
    kept = len(record.answer or "") + len(record.reasoning or "") + sum(len(c.arguments) for c in record.tool_calls)
    assert 0 < kept <= BODY_MAX + len(text)
    assert record.bytes_out > 2 * BODY_MAX
