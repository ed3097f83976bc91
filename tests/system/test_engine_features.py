"""Sampling, formats, tools, log probabilities, choices, vectors: with the official client, on the real model."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.support.cluster import Cluster, Process

MODEL = "smollm2"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Tokyo"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(served: tuple[Cluster, Process]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served[1].url}/v1", api_key="none", max_retries=0, timeout=120) as it:
        yield it


def text_of(client: openai.OpenAI, **more: Any) -> str:
    fields: dict[str, Any] = {"model": MODEL, "messages": STORY, "max_tokens": 24, **more}
    return client.chat.completions.create(**fields).choices[0].message.content or ""


def test_the_same_seed_gives_the_same_text_whatever_shares_the_batch(client: openai.OpenAI) -> None:
    alone = text_of(client, seed=11, temperature=1.0)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: text_of(client, seed=seed, temperature=1.0), [11, 12, 11, 13]))
    assert together[0] == together[2] == alone
    assert len(set(together)) == 3


def test_every_sampling_field_has_an_effect_or_none_where_it_must_not(client: openai.OpenAI) -> None:
    greedy = text_of(client, temperature=0)
    assert text_of(client, temperature=2, extra_body={"top_k": 1}) == greedy
    assert text_of(client, temperature=2, top_p=1e-6) == greedy
    assert text_of(client, temperature=2, extra_body={"min_p": 1.0}) == greedy
    plain = text_of(client, temperature=0, max_tokens=40)
    assert text_of(client, temperature=0, max_tokens=40, frequency_penalty=2) != plain
    assert text_of(client, temperature=0, max_tokens=40, presence_penalty=2) != plain
    assert text_of(client, temperature=0, max_tokens=40, extra_body={"repeat_penalty": 2.0}) != plain


def test_a_bias_bans_and_forces_tokens(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a", "temperature": 0, "max_tokens": 3}
    free = client.completions.create(**fields).choices[0].text
    forced = client.completions.create(**fields, logit_bias={"1029": 100}).choices[0].text
    assert forced == 3 * forced[: len(forced) // 3] != "", "one token, three times"
    assert forced != free


def test_log_probabilities_are_those_of_the_tokens_sent(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 6}
    whole = client.chat.completions.create(**fields, logprobs=True, top_logprobs=3).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    assert "".join(token.token for token in whole.logprobs.content) == whole.message.content
    for token in whole.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token, "greedy takes the most likely"
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)
        assert token.logprob <= 0
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-6
        assert bytes(token.bytes or []).decode() == token.token
    streamed = []
    for chunk in client.chat.completions.create(**fields, logprobs=True, top_logprobs=3, stream=True):
        if chunk.choices and chunk.choices[0].logprobs and chunk.choices[0].logprobs.content:
            streamed += chunk.choices[0].logprobs.content
    assert [token.token for token in streamed] == [token.token for token in whole.logprobs.content]
    legacy = client.completions.create(model=MODEL, prompt="One two three", max_tokens=3, temperature=0, logprobs=2)
    assert legacy.choices[0].logprobs is not None
    assert legacy.choices[0].logprobs.tokens is not None
    assert "".join(legacy.choices[0].logprobs.tokens) == legacy.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_several_answers(client: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": STORY, "max_tokens": 16, "temperature": 1, "seed": 5, "n": 3}
    if stream:
        texts = ["", "", ""]
        usage = None
        options = {"include_usage": True}
        for chunk in client.chat.completions.create(**fields, stream=True, stream_options=options):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        answer = client.chat.completions.create(**fields)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        texts = [choice.message.content or "" for choice in answer.choices]
        usage = answer.usage
    assert len(set(texts)) == 3
    assert texts[0] == text_of(client, max_tokens=16, temperature=1, seed=5)
    assert usage is not None
    assert usage.completion_tokens == 48
    assert usage.prompt_tokens < 60, "the prompt counts once"


def test_several_prompts_are_several_answers(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "The capital of Japan is"]
    answer = client.completions.create(model=MODEL, prompt=prompts, max_tokens=4, temperature=0)
    alone = [client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0) for prompt in prompts]
    assert [choice.text for choice in answer.choices] == [one.choices[0].text for one in alone]


def test_json_mode_gives_an_object(client: openai.OpenAI) -> None:
    ask: list[Any] = [{"role": "user", "content": "Describe a cat as JSON with the keys name and age."}]
    text = text_of(client, messages=ask, max_tokens=150, temperature=0, response_format={"type": "json_object"})
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_enforced(client: openai.OpenAI, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {
            "animal": {"type": "string", "enum": ["cat", "dog"]},
            "legs": {"type": "integer", "minimum": 0, "maximum": 9},
            "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        },
        "required": ["animal", "legs", "tags"],
        "additionalProperties": False,
    }
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": STORY,
        "max_tokens": 150,
        "temperature": 1.5,
        "seed": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}},
    }
    if stream:
        chunks = client.chat.completions.create(**fields, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    else:
        text = client.chat.completions.create(**fields).choices[0].message.content
    found = json.loads(text)
    assert found["animal"] in ("cat", "dog")
    assert 0 <= found["legs"] <= 9
    assert [type(tag) for tag in found["tags"]] == [bool, bool]


def test_a_schema_that_can_not_be_enforced_is_refused(client: openai.OpenAI) -> None:
    format: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://example.com/x"}}}
    with pytest.raises(openai.BadRequestError, match="can't be enforced"):
        text_of(client, response_format=format)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_call_that_must_come_comes_parsed(client: openai.OpenAI, stream: bool, choice: Any) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the weather in Tokyo for 3 days?"}],
        "tools": [WEATHER],
        "tool_choice": choice,
        "temperature": 0,
        "max_tokens": 120,
        "parallel_tool_calls": False,
    }
    if stream:
        name, arguments, finish, content = "", "", None, ""
        for chunk in client.chat.completions.create(**fields, stream=True):
            delta = chunk.choices[0].delta
            content += delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
            for call in delta.tool_calls or []:
                assert call.index == 0
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    else:
        answer = client.chat.completions.create(**fields).choices[0]
        finish, content = answer.finish_reason, answer.message.content or ""
        assert answer.message.tool_calls is not None
        (call_,) = answer.message.tool_calls
        assert call_.type == "function"
        assert call_.id.startswith("call_")
        name, arguments = call_.function.name, call_.function.arguments
    assert finish == "tool_calls"
    assert content == ""
    assert name == "get_weather"
    found = json.loads(arguments)
    assert found["city"] in ("Paris", "Tokyo")
    assert isinstance(found["days"], int)


def test_a_conversation_with_calls_and_their_results_is_understood(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    turns: list[Any] = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=turns, tools=[TIME], max_tokens=20, temperature=0)
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls
    free = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[TIME], tool_choice="none", max_tokens=10, temperature=0
    )
    assert free.choices[0].message.content == text_of(client, messages=QUESTION, max_tokens=10, temperature=0)


def test_stop_texts_end_the_answer_wherever_tokens_are_cut(client: openai.OpenAI) -> None:
    whole = text_of(client, messages=QUESTION, temperature=0, max_tokens=12)
    for stop in ("apan", "is T", "Tokyo."):
        assert stop in whole
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=12, stop=[stop], stream=True
        )
        assert "".join(c.choices[0].delta.content or "" for c in answer if c.choices) == whole.split(stop)[0]


def test_vectors_have_length_one_and_come_in_both_encodings(client: openai.OpenAI, served: Any) -> None:
    texts = ["a cat sat on the mat", "the stock market fell", "a kitten sat on a rug"]
    batch = client.embeddings.create(model=MODEL, input=texts)
    assert [row.index for row in batch.data] == [0, 1, 2]
    assert all(math.isclose(sum(x * x for x in row.embedding), 1, rel_tol=1e-4) for row in batch.data)
    single = client.embeddings.create(model=MODEL, input=texts[1], encoding_format="float").data[0].embedding
    assert single == pytest.approx(batch.data[1].embedding, abs=1e-6)
    raw = httpx.post(
        f"{served[1].node_url}/v1/embeddings",
        json={"model": MODEL, "input": texts[1], "encoding_format": "base64"},
        timeout=60,
    ).json()
    data = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(single, abs=1e-6)
    assert raw["usage"]["prompt_tokens"] == raw["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": MODEL}, "input"),
        ({"model": MODEL, "input": ""}, "input.0"),
        ({"model": MODEL, "input": []}, "input"),
        ({"model": MODEL, "input": [{}]}, "input.0"),
        ({"model": MODEL, "input": [99999999]}, "input.0"),
        ({"model": MODEL, "input": "x", "dimensions": 5}, "dimensions"),
        ({"model": MODEL, "input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"model": MODEL, "input": "word " * 3000}, "input.0"),
    ],
)
def test_bad_embedding_requests_are_answered(served: tuple[Cluster, Process], body: Any, param: str) -> None:
    response = httpx.post(f"{served[1].url}/v1/embeddings", json=body, timeout=60)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_an_image_for_a_text_model_is_refused_by_capability(client: openai.OpenAI) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    turn: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}},
            ],
        }
    ]
    with pytest.raises(openai.BadRequestError, match="vision"):
        text_of(client, messages=turn)
