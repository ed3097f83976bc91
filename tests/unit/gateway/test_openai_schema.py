"""Bodies of the OpenAI routes: whatever comes is a request that fits on the bus, or an InvalidRequest."""

from __future__ import annotations

import base64
import json
import math
import time
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmlb.bus import codec
from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.gateway.openai_chat import choices_of
from llmlb.router.gateway.openai_embeddings_schema import EmbeddingRequest
from llmlb.router.gateway.openai_schema import ChatRequest, CompletionRequest, parse

Route = type[ChatRequest] | type[CompletionRequest] | type[EmbeddingRequest]
IMAGE = "data:image/png;base64," + base64.b64encode(b"picture").decode()

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s", "name": "n"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://pictures.test/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "r",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "3"},
    ],
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repeat_penalty": 1.5,
    "seed": 5,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "stop": ["a", "b"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 2,
    "logit_bias": {"5": -100},
    "tools": [{"type": "function", "function": {"name": "add", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
    "parallel_tool_calls": False,
    "functions": [],
    "response_format": {"type": "text"},
    "logprobs": True,
    "top_logprobs": 3,
    "think": True,
    "chat_template_kwargs": {"a": [1, {"b": None}]},
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
    "user": "u",
}
FORMAT: dict[str, Any] = {
    **{key: value for key, value in CHAT.items() if not key.startswith("tool")},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
}
COMPLETION: dict[str, Any] = {
    **{key: CHAT[key] for key in ("model", "temperature", "seed", "max_tokens", "stop", "n", "logit_bias")},
    "prompt": ["a", "b"],
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "logprobs": 5,
}
EMBEDDING: dict[str, Any] = {
    "model": "m",
    "input": ["a", [1, 2]],
    "encoding_format": "float",
    "dimensions": None,
    "truncate": True,
    "user": "u",
}
BODIES: list[tuple[Route, dict[str, Any]]] = [
    (ChatRequest, CHAT),
    (ChatRequest, FORMAT),
    (CompletionRequest, COMPLETION),
    (EmbeddingRequest, EMBEDDING),
]


def requests_of(cls: Route, body: bytes) -> list[InferRequest]:
    """What the route makes of a body. Raises InvalidRequest."""
    parsed = parse(cls, body)
    if isinstance(parsed, EmbeddingRequest):
        return [parsed.request("r")]
    made = parsed.request("r")
    if isinstance(parsed, CompletionRequest):
        first = made if isinstance(made, InferRequest) else made[0]
        return [
            one
            for prompt in parsed.prompts()
            for one in choices_of(first.model_copy(update={"prompt": prompt}), parsed.choices())
        ]
    return choices_of(made if isinstance(made, InferRequest) else made[0], parsed.choices())


def sound(error: InvalidRequest) -> InvalidRequest:
    assert 0 < len(error.message) < 400
    assert error.param is None or 0 < len(error.param) <= 200
    orjson.dumps([error.message, error.param])
    return error


def outcome(cls: Route, body: bytes) -> InvalidRequest | list[InferRequest]:
    """An error that says something, or requests that arrive on the other side of the bus as they are."""
    try:
        made = requests_of(cls, body)
    except InvalidRequest as error:
        return sound(error)
    for one in made:
        assert codec.decode_as(InferRequest, codec.encode(one)) == one
        json.loads(one.template_kwargs, parse_constant=lambda name: pytest.fail(name))
    return made


def refused(cls: Route, body: dict[str, Any] | bytes | str) -> InvalidRequest:
    data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    got = outcome(cls, data)
    assert isinstance(got, InvalidRequest)
    return got


def paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a body."""
    found = [at] if at else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += paths(inner, (*at, index))
    return found


def put(body: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy of the body with another value in one place."""
    copied: Any = json.loads(json.dumps(body))
    place = copied
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return dict(copied)


any_text = st.text(st.characters(exclude_categories=()), max_size=8)
words = st.sampled_from(["", "auto", "none", "required", "function", "text", "image_url", "json_object", "#0", IMAGE])
numbers = st.integers() | st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, 10**30, 10**400, -(10**400)])
scalars = st.none() | st.booleans() | numbers | st.floats() | any_text | words
keys = any_text | st.sampled_from(["type", "text", "url", "function", "name", "schema", "arguments"])
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Route, bytes]:
    """A whole body with something else in one to three places."""
    cls, body = draw(st.sampled_from(BODIES))
    for _ in range(draw(st.integers(1, 3))):
        body = put(body, draw(st.sampled_from(paths(body))), draw(anything))
        if not isinstance(body, dict):
            break
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    return cls, text.encode(errors="surrogatepass")


@given(bodies())
def test_anything_anywhere_is_a_request_or_a_refusal(made: tuple[Route, bytes]) -> None:
    outcome(*made)


@given(st.sampled_from(BODIES), st.integers(0, 3000), st.binary(max_size=3), st.integers(0, 3))
def test_broken_bytes_are_a_request_or_a_refusal(
    made: tuple[Route, dict[str, Any]], at: int, new: bytes, cut: int
) -> None:
    whole = json.dumps(made[1]).encode()
    at %= len(whole)
    outcome(made[0], whole[:at] + new + whole[at + cut :])


@given(st.sampled_from([cls for cls, _ in BODIES]), anything | st.binary())
@example(ChatRequest, [])
@example(ChatRequest, math.nan)
def test_a_body_that_is_something_else_is_refused(cls: Route, value: Any) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    assert refused(cls, data).param in (None, "model")


@pytest.mark.parametrize(("cls", "body"), BODIES)
def test_null_in_any_field_is_as_if_not_given(cls: Route, body: dict[str, Any]) -> None:
    assert isinstance(outcome(cls, json.dumps(body).encode()), list)
    for name in body:
        with_null = outcome(cls, json.dumps({**body, name: None}).encode())
        without = outcome(cls, json.dumps({key: value for key, value in body.items() if key != name}).encode())
        if isinstance(with_null, InvalidRequest):
            assert isinstance(without, InvalidRequest)
            assert with_null.param == without.param
        else:
            assert len(with_null) == len(without)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cls", "body"), BODIES)
def test_null_in_any_place_is_a_request_or_a_refusal_that_names_it(cls: Route, body: dict[str, Any]) -> None:
    for path in paths(body):
        got = outcome(cls, json.dumps(put(body, path, None)).encode())
        if isinstance(got, InvalidRequest):
            assert (got.param or "").split(".")[0] in {path[0], "tool_choice", "stream_options", "top_logprobs"}


@pytest.mark.parametrize(
    ("field", "text", "param"),
    [
        ("temperature", "NaN", "temperature"),
        ("temperature", "1e999", "temperature"),
        ("temperature", "1" + "0" * 400, "temperature"),
        ("temperature", "1" + "0" * 5000, None),
        ("temperature", "true", "temperature"),
        ("temperature", '"0.5"', "temperature"),
        ("top_p", "-Infinity", "top_p"),
        ("seed", "9223372036854775808", "seed"),
        ("seed", "1.0", "seed"),
        ("max_tokens", "1e3", "max_tokens"),
        ("n", "0", "n"),
        ("n", "129", "n"),
        ("logit_bias", '{"5": NaN}', "logit_bias"),
        ("logit_bias", '{"5": 1e999}', "logit_bias"),
        ("logit_bias", '{"5": 1' + "0" * 400 + "}", "logit_bias"),
        ("logit_bias", '{"5": true}', "logit_bias.5"),
        ("logit_bias", '{"5": null}', "logit_bias.5"),
        ("logit_bias", '{"-5": 1}', "logit_bias"),
        ("logit_bias", '{"\\u0663": 1}', "logit_bias"),
        ("logit_bias", '{"1234567890": 1}', "logit_bias"),
        ("chat_template_kwargs", '{"a": [NaN]}', "chat_template_kwargs"),
        ("chat_template_kwargs", '{"a": 1e999}', "chat_template_kwargs"),
        ("chat_template_kwargs", "[]", "chat_template_kwargs"),
        ("stop", '["a", 1]', "stop"),
        ("stop", json.dumps(["1"] * 65), "stop"),
        ("stop", '"\\ud800"', None),
        ("stop", '"\\udc00\\ud800"', None),
        ("model", '"\\ud83d"', None),
        ("model", '""', "model"),
        ("messages", "[]", "messages"),
        ("messages", "{}", "messages"),
        ("stream", '"true"', "stream"),
        ("user", "[" * 5000 + "]" * 5000, None),
        ("user", "[" * 5000, None),
        ("user", "01", None),
        ("user", "'a'", None),
        ("user", "1 2", None),
    ],
)
def test_odd_values_are_refused_by_name(field: str, text: str, param: str | None) -> None:
    whole = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]})
    error = refused(ChatRequest, f'{whole[:-1]}, "{field}": {text}}}')
    assert error.param == param


def test_numbers_of_any_size_pass_through_templates_and_schemas() -> None:
    huge = 10**30
    tool = {"type": "function", "function": {"name": "f", "parameters": {"maximum": huge, "title": "é \u2028"}}}
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    (made,) = requests_of(ChatRequest, json.dumps({**asked, "chat_template_kwargs": {"x": huge}}).encode())
    assert json.loads(made.template_kwargs) == {"x": huge}
    assert json.loads(made.tools[0].parameters) == {"maximum": huge, "title": "é \u2028"}


def test_of_a_key_given_twice_the_last_one_counts() -> None:
    body = b'{"model": "a", "prompt": 1, "model": "b", "prompt": "x", "n": 9, "n": null}'
    (made,) = requests_of(CompletionRequest, body)
    assert (made.model, made.prompt) == ("b", "x")


def test_the_largest_seed_still_leaves_room_for_every_choice() -> None:
    made = requests_of(CompletionRequest, json.dumps({**COMPLETION, "n": 64, "seed": 2**63 - 1}).encode())
    assert len({one.sampling.seed for one in made}) == 64
    assert all((one.sampling.seed or 0) < 2**64 for one in made)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,é",
        "data:image/png;base64,AA=A",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AA AA",
        "data:image/png;base64,",
        "data:image/png,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:" + ";" * 1_000_000,
        "file:///etc/passwd",
        "ftp://a/b",
        "#0",
        "",
        None,
        1,
        ["https://a/"],
        {"url": "https://a/"},
    ],
)
def test_images_that_are_none_are_refused_by_their_part(url: Any) -> None:
    body = put(CHAT, ("messages", 1, "content", 1, "image_url", "url"), url)
    assert refused(ChatRequest, body).param == "messages.1.content.1"


@pytest.mark.parametrize("part", [None, 1, "text", [], {}, {"type": ["text"]}, {"type": "text"}, {"type": "file"}])
def test_parts_that_are_none_are_refused_by_their_place(part: Any) -> None:
    body = put(CHAT, ("messages", 1, "content", 2), part)
    assert refused(ChatRequest, body).param == "messages.1.content.2"


MANY = 100_000


@pytest.mark.parametrize(
    ("cls", "body"),
    [
        (ChatRequest, '{"model":"m","messages":[' + "1," * MANY + "1]}"),
        (ChatRequest, '{"model":"m","messages":[' + '{"role":"user","content":""},' * (MANY // 5) + "1]}"),
        (ChatRequest, '{"model":"m","messages":[{"role":"user","content":[' + "1," * MANY + "1]}]}"),
        (ChatRequest, '{"model":"m","messages":[{"role":"assistant","tool_calls":[' + "1," * MANY + "1]}]}"),
        (ChatRequest, '{"model":"m","messages":[],"stop":[' + "1," * MANY + "1]}"),
        (ChatRequest, '{"model":"m","messages":[],"tools":[' + "{}," * MANY + "{}]}"),
        (ChatRequest, '{"model":"m","messages":[],"modalities":[' + "1," * MANY + "1]}"),
        (CompletionRequest, '{"model":"m","prompt":[' + "1," * MANY + "1]}"),
        (
            CompletionRequest,
            '{"model":"m","prompt":"x","logit_bias":{' + ",".join(f'"{at}":"a"' for at in range(MANY)) + "}}",
        ),
        (EmbeddingRequest, '{"model":"m","input":[' + "[]," * MANY + "[]]}"),
        (EmbeddingRequest, '{"model":"m","input":[' + '"a",' * MANY + "1]}"),
    ],
)
def test_a_great_many_bad_items_are_refused_at_once(cls: Route, body: str) -> None:
    """Collecting an error for each one took seconds, in which the gateway did nothing else."""
    data = body.encode()
    began = time.process_time()
    json.loads(data)
    parsed = time.process_time()
    refused(cls, data)
    assert time.process_time() - parsed < 30 * (parsed - began) + 0.5


def test_a_long_key_is_not_sent_back_whole() -> None:
    error = refused(ChatRequest, {**CHAT, "tools": [{"type": "function", "function": {"name": "x" * 100_000}}]})
    assert len(error.message) <= 200
    assert error.param == "tools.0.function.name"
