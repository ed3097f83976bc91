"""Long bodies go through Python's objects, short ones straight into the schema: nobody may see a difference."""

from __future__ import annotations

import base64
import json
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from llmlb.bus.errors import InvalidRequest
from llmlb.router.gateway import openai_messages, openai_schema
from llmlb.router.gateway.anthropic_schema import MessagesRequest
from llmlb.router.gateway.openai_embeddings_schema import EmbeddingRequest
from llmlb.router.gateway.openai_messages import is_base64
from llmlb.router.gateway.openai_responses_schema import ResponsesRequest
from llmlb.router.gateway.openai_schema import (
    LONG_BYTES,
    LONGEST_BYTES,
    ChatRequest,
    CompletionRequest,
    parse,
)
from llmlb.router.secret_marks import LEAST_BYTES

ROUTES: list[type[BaseModel]] = [ChatRequest, CompletionRequest, EmbeddingRequest, ResponsesRequest, MessagesRequest]
GOOD: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": 'Größe\n"…" \U0001f600'}],
    "prompt": "p",
    "input": "i",
    "max_tokens": 5,
}
PADDING = '"padding": "' + "x\\n " * (LONG_BYTES // 4) + '", '
VALUES = [
    *("null", "true", "0", "-1", "1.0", "0.5", "1e3", "1e400", "NaN", "-Infinity", str(2**63), str(2**64), "9" * 400),
    *('""', '"1"', '"m"', '"\\ud83d\\ude00"', '"\\ud800"', "[]", '["a"]', "[1, null]", "{}", '{"a": {"b": [1.5]}}'),
    *('{"type": "text"}', '[{"type": "text", "text": "t"}]', '[{"role": "user", "content": "c"}]', '{"a": 1, "a": 2}'),
]


def whole(fields: str) -> bytes:
    return ("{" + PADDING + fields + "}").encode()


def told(cls: type[BaseModel], body: bytes) -> object:
    """What comes of a body: the fields, or what its client is told."""
    try:
        return repr(parse(cls, body))
    except InvalidRequest as error:
        return error.message, error.param


def same(cls: type[BaseModel], body: bytes) -> None:
    """Whether it is read in one way or the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_schema, "LONG_BYTES", 0)
        python = told(cls, body)
        patch.setattr(openai_schema, "LONGEST_BYTES", -1)
        assert told(cls, body) == python


@pytest.mark.parametrize("cls", ROUTES)
def test_a_long_good_body_is_read_through_python_and_is_the_same(cls: type[BaseModel]) -> None:
    body = whole(json.dumps(GOOD)[1:-1])
    assert LONG_BYTES <= len(body) <= LONGEST_BYTES
    assert openai_schema._long(cls, body) == cls.model_validate_json(body)


@pytest.mark.parametrize("cls", ROUTES)
def test_any_field_with_any_value_is_taken_or_refused_alike(cls: type[BaseModel]) -> None:
    for name in cls.model_fields:
        for value in VALUES:
            fields = json.dumps({key: one for key, one in GOOD.items() if key != name})[1:-1]
            same(cls, f'{{{fields}, "{name}": {value}}}'.encode())


@pytest.mark.parametrize(
    "fields",
    [
        '"model": 1, "model": "m", "messages": [{"role": "user", "content": "a", "content": "b"}]',
        '"model": "m", "model": 1, "messages": []',
        '"model": "m", "messages": ' + "[" * 10_000,
        '"model": "m", "messages": [], "other": ' + "[" * 199 + "]" * 199,
        '"model": "m", "messages": [], "other": ' + '{"a":' * 300 + "1" + "}" * 300,
        '"model": "m", "messages": [{"role": "user", "content": "\x01"}]',
        '"model": "m", "messages": [{"role": "user", "content": "\\x"}]',
        '"model": "m",',
        '"model": "m"} {',
    ],
)
def test_malformed_and_doubtful_bodies_are_told_the_same(fields: str) -> None:
    same(ChatRequest, whole(fields))


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00"])
def test_a_long_body_that_is_no_utf8_is_refused_as_a_short_one(bad: bytes) -> None:
    body = whole('"model": "m", "messages": [{"role": "user", "content": "?"}]').replace(b"?", bad)
    same(ChatRequest, body)
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse(ChatRequest, body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner),
    max_leaves=8,
)


@given(st.sampled_from(ROUTES), st.data())
def test_whatever_comes_is_told_the_same(cls: type[BaseModel], data: st.DataObject) -> None:
    names = st.sampled_from(sorted(cls.model_fields))
    same(cls, json.dumps({**GOOD, **data.draw(st.dictionaries(names, JSON, max_size=4))}).encode())


def test_the_largest_bodies_go_straight_into_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    def unused(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(openai_schema, "_long", unused)
    assert parse(ChatRequest, whole(json.dumps(GOOD)[1:-1]) + b" " * LONGEST_BYTES)


FORM = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
LONG = base64.b64encode(random.Random(1).randbytes(6000)).decode()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("length", [0, 4, LEAST_BYTES - 4, LEAST_BYTES, 8000])
def test_base64_is_told_from_what_is_none(fast: bool, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = openai_messages._no_base64
    if fast and not found.wait(30):
        pytest.skip("there is no hyperscan for this platform")
    if not fast:
        monkeypatch.setattr(found, "find", lambda _: None)
    text = LONG[:length]
    assert is_base64(text)
    for end in (
        "A",
        "AA",
        "AAA",
        "AAA=",
        "AA==",
        "A===",
        "====",
        "AA=A",
        "=AAA",
        "AAA-",
        "AAA\n",
        "AA=\n",
        "AAAé",
        "é===",
    ):
        for one in (text + end, end + text, text[: length // 2] + end + text[length // 2 :]):
            assert is_base64(one) == bool(FORM.fullmatch(one)), (end, len(one))


def test_validation_errors_are_value_errors() -> None:
    assert issubclass(ValidationError, ValueError)  # the one thing caught where a long body is no good
