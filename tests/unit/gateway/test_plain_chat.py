"""What is read without the schema is what the schema would have made of it, and all else is left to the schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus import codec
from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.gateway.openai_messages import MAX_PARTS
from llmlb.router.gateway.openai_schema import ChatRequest, parse
from llmlb.router.gateway.plain_chat import PLAIN_MAX, plain_chat

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": 'größe " \\ \n 😀'}]}


def by_schema(body: bytes) -> tuple[InferRequest, bool]:
    asked = parse(ChatRequest, body)
    request, images = asked.request("r", 7)
    assert not images
    return request, bool(asked.stream)


def same(body: bytes) -> None:
    plain = plain_chat(body, "r", 7)
    assert plain is not None
    ours, theirs = plain[0], by_schema(body)[0]
    written = [codec.decode_as(InferRequest, b"".join(codec.encode_request(one))) for one in (ours, theirs)]
    assert written[0].model_copy(update={"sent_at": 0.0}) == written[1].model_copy(update={"sent_at": 0.0})
    assert ours.model_copy(update={"sent_at": 0.0}) == theirs.model_copy(update={"sent_at": 0.0})
    assert ours.sampling.model_fields_set == theirs.sampling.model_fields_set
    assert plain[1] is by_schema(body)[1]


numbers = st.none() | st.integers(-1, 3) | st.floats(-0.5, 2.5) | st.integers() | st.booleans() | st.just("1")
values = numbers | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
IMAGE = "data:image/png;base64,iVBORw0KGgo="
PICTURE = {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}
urls = st.sampled_from(
    [IMAGE, "data:image/jpeg;base64,/9j/", "data:image/png;base64,", "data:text/plain;base64,aGk=", "#0"]
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "refusal", "file"])},
    optional={
        "text": st.text(max_size=5) | st.none(),
        "refusal": st.text(max_size=5),
        "image_url": urls | st.fixed_dictionaries({"url": urls}, optional={"detail": values}),
        "cache_control": values,
    },
)
contents = st.text(max_size=20) | st.none() | st.lists(parts | values, max_size=4)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "nobody", ""])},
    optional={"content": contents, "name": st.text(max_size=3), "other": values},
)
bodies = st.fixed_dictionaries(
    {"model": st.text(max_size=4) | numbers, "messages": st.lists(messages, max_size=3)},
    optional={
        **dict.fromkeys(("temperature", "top_p", "seed", "max_tokens", "stream", "n"), numbers),
        **dict.fromkeys(("stop", "user", "functions", "stream_options"), values),
    },
)


@given(bodies, st.sampled_from([0, 5000]))
def test_a_body_is_read_as_the_schema_reads_it_or_left_to_it(body: dict[str, Any], long: int) -> None:
    if long and isinstance(body["messages"], list):
        body = {**body, "messages": [*body["messages"], {"role": "user", "content": "x" * long}]}
    data = json.dumps(body).encode()
    if plain_chat(data, "r", 7) is not None:
        same(data)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"max_tokens": 2**31 - 1, "temperature": 0, "top_p": 1, "seed": -(2**63), "stream": True},
        {"max_tokens": 1, "temperature": 2, "top_p": 0.5, "seed": 2**63 - 1, "stream": False},
        dict.fromkeys(("max_tokens", "temperature", "top_p", "seed", "stream")),
        {"messages": [{"role": role, "content": ""} for role in ("system", "developer", "user", "assistant", "tool")]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in ("hi", "", "there")]}]},
        {"messages": [{"role": "user", "content": []}, {"role": "user", "content": "x" * 5000}]},
        *(
            {"messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "hi" * n}]}]}
            for n in (1, 4000)
        ),
        *(
            {"messages": [{"role": "user", "content": "hi" * n}, {"role": "user", "content": [PICTURE] * 32}]}
            for n in (1, 4000)
        ),
    ],
)
def test_most_bodies_are_read_without_the_schema(more: dict[str, Any]) -> None:
    same(json.dumps({**BODY, **more}).encode())


def test_of_a_field_that_is_there_twice_the_last_counts() -> None:
    same(b'{"model": "a", "model": "b", "messages": [{"role": "user", "role": "tool", "content": "hi"}]}')


@pytest.mark.parametrize(
    "more",
    [
        *({"max_tokens": value} for value in (0, 2**31, True, 1.0, "1")),
        *({"temperature": value} for value in (-0.1, 2.1, True, "1")),
        *({"top_p": value} for value in (0, 1.1, False)),
        *({"seed": value} for value in (2**63, -(2**63) - 1, 0.5, True)),
        *({"model": value} for value in ("", "m" * 257, None, 1)),
        *({"messages": value} for value in ([], None, "hi", [{}], [{"role": "user"}], [[]])),
        *({"messages": [{"role": value, "content": "hi"}]} for value in ("nobody", None, ["user"], {})),
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [PICTURE] * 33}]},
        {"messages": [{"role": "user", "content": [PICTURE] * 32}, {"role": "user", "content": [PICTURE]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "https://example.com/a.png"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": IMAGE + "!"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * (MAX_PARTS + 1)}]},
        {"messages": [{"role": "user", "content": "hi", "name": "me"}]},
        {"stream": 1},
        {"n": 1},
        {"user": "me"},
        {"stream_options": {"include_usage": True}},
        {"messages": [{"role": "user", "content": "x" * PLAIN_MAX}]},
    ],
)
def test_all_else_is_left_to_the_schema(more: dict[str, Any]) -> None:
    assert plain_chat(json.dumps({**BODY, **more}).encode(), "r", 7) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"model"', b"\xff", b'{"model": NaN}'])
def test_what_is_no_object_is_left_to_the_schema_which_refuses_it(data: bytes) -> None:
    assert plain_chat(data, "r", 7) is None
    with pytest.raises(InvalidRequest):
        by_schema(data)
