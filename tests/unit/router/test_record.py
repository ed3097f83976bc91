"""A record is made without its message class, and must be what that class is."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pytest

from llmlb.bus import codec
from llmlb.bus.errors import EngineCrashed
from llmlb.bus.messages.base import changed
from llmlb.bus.messages.infer import ChatMessage, Delta, End, InferRequest, Sampling, Timings, ToolCallPiece, Usage
from llmlb.bus.messages.requests import RequestAttempt, RequestRecord
from llmlb.router.call import Call
from llmlb.router.journey import Attempt, Journey
from llmlb.router.record import Record, Tried, encode
from llmlb.router.store import _values, plain_values

REQUEST = InferRequest(
    request_id="r", model="m", kind="chat", messages=(ChatMessage(role="user", content="hi"),), sampling=Sampling()
)


def journey() -> Journey:
    it = Journey(REQUEST, Call(path="/v1/chat/completions", key="k", client_request_id="mine", body="{}"), "g")
    for node, reason in (("a", EngineCrashed("it fell")), ("b", None)):
        it.attempts.append(Attempt(node * 32, "m", "loaded", 0.0))
        it.deliver(Delta(request_id="r", seq=1, text="größe", token_ids=(1, 2), reasoning="hm"))
        if reason is not None:
            it.failed(reason)
    piece = ToolCallPiece(index=0, id="c", name="f", arguments="{}")
    it.deliver(Delta(request_id="r", seq=2, text="", token_ids=(3,), tool_calls=(piece,)))
    usage = Usage(prompt_tokens=3, completion_tokens=5, reasoning_tokens=1, cached_tokens=2)
    it.deliver(End(request_id="r", seq=3, finish_reason="stop", usage=usage, timings=Timings(load_ms=1.5)))
    return it


def test_a_record_has_the_fields_of_its_message_and_no_others() -> None:
    assert {field.name for field in dataclasses.fields(Record)} == set(RequestRecord.model_fields)
    assert {field.name for field in dataclasses.fields(Tried)} == set(RequestAttempt.model_fields)


def test_a_record_is_read_as_its_message_with_every_value() -> None:
    record = journey().record()
    read = codec.decode(codec.encode_plain(record))
    assert isinstance(read, RequestRecord)
    assert read.usage == record.usage
    assert read.timings == record.timings
    assert [(one.node_id, one.reason, one.tokens) for one in read.tried] == [
        ("a" * 32, "engine_crashed", 2),
        ("b" * 32, None, 3),
    ]
    assert (read.client_request_id, read.key, read.status, read.attempts) == ("mine", "k", "ok", 2)
    written: dict[str, Any] = read.model_dump(mode="json")
    plain = codec.decode_as(RequestRecord, codec.encode(read)).model_dump(mode="json")
    assert written == plain


def test_a_record_of_a_request_that_reached_no_node_is_read_too() -> None:
    read = codec.decode_as(RequestRecord, codec.encode_plain(Journey(REQUEST, Call(), "g").record()))
    assert (read.node_id, read.attempts, read.tried, read.usage) == ("", 1, (), None)


def test_a_changed_copy_is_as_pydantics_own() -> None:
    ours, theirs = changed(REQUEST, model="n", attempt=1), REQUEST.model_copy(update={"model": "n", "attempt": 1})
    assert ours == theirs
    assert codec.encode(ours) == codec.encode(theirs)
    assert ours.model_fields_set == theirs.model_fields_set
    assert (REQUEST.model, hash(ours)) == ("m", hash(theirs))


def test_the_history_reads_a_record_of_this_version_as_its_message_class_does() -> None:
    data = codec.encode_plain(journey().record())
    assert plain_values(data, 5.0) == _values(codec.decode_as(RequestRecord, data), 5.0)


ASKED = {"messages": [{"role": "user", "content": ',"request_json":{"a":1}}' + "größe \\ \n" * 1000}], "usage": None}
"""Long, and with what the store looks for in a text of it."""


def long_record(**changes: Any) -> bytes:
    """As a gateway of this version writes it, the request last."""
    record = dataclasses.replace(journey().record(), request_body=None, request_json=orjson.dumps(ASKED), **changes)
    return b"".join(encode(record))


@pytest.mark.parametrize("answer", ["short", ',"request_json":{"x":"}}' * 1000, '\\",\\"request_json\\":{' * 1000])
def test_the_history_reads_a_long_record_as_its_message_class_does(answer: str) -> None:
    data = long_record(answer=answer)
    assert plain_values(data, 5.0) == _values(codec.decode_as(RequestRecord, data), 5.0)


def test_the_request_is_looked_for_where_it_is_a_field_of_the_record() -> None:
    whole = orjson.loads(long_record())
    nested = orjson.dumps({**whole, "tried": [{"node_id": "a", "request_json": ASKED}], "request_json": ASKED})
    assert plain_values(nested, 5.0) is None, "left to the message class"
    asked = whole.pop("request_json")
    for at in range(len(whole) + 1):
        fields = list(whole.items())
        fields.insert(at, ("request_json", asked))
        data = orjson.dumps(dict(fields))
        values = plain_values(data, 5.0)
        assert values is None or values == _values(codec.decode_as(RequestRecord, data), 5.0)


def test_a_long_record_that_is_cut_off_is_left_to_the_message_class() -> None:
    data = long_record()
    for size in (*range(0, len(data), 97), len(data) - 1):
        assert plain_values(data[:size], 5.0) is None


@pytest.mark.parametrize(
    "change",
    [
        {"type": "llmlb.request.record.v2"},
        {"started_at": 0.0},
        {"attempts": "1"},
        {"attempts": -1},
        {"attempts": True},
        {"status": "fine"},
        {"usage": {"prompt_tokens": 1}},
        {"usage": {"prompt_tokens": None, "completion_tokens": 1, "reasoning_tokens": 0, "cached_tokens": 0}},
        {"usage": 7},
        {"model": None},
        {"key": 5},
    ],
)
def test_a_record_that_is_another_is_left_to_the_message_class(change: dict[str, Any]) -> None:
    body = {**orjson.loads(codec.encode_plain(journey().record())), **change}
    assert plain_values(orjson.dumps(body), 5.0) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"null", b'"usage"'])
def test_what_is_no_record_is_left_to_the_message_class(data: bytes) -> None:
    assert plain_values(data, 5.0) is None
