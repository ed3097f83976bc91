"""The official anthropic client against both gateways, on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import pytest

from tests.support.cluster import Cluster, Process, wait_until

MODEL = "smollm2"
GREEDY: Any = {"temperature": 0}
"""Sent as an extra field: this client knows no temperature any more, though the API does."""
FORCED: Any = {"type": "any", "disable_parallel_tool_use": True}
QUESTION: list[Any] = [{"role": "user", "content": "Name the planets of the solar system."}]


@pytest.fixture(params=["router", "node"])
def client(request: pytest.FixtureRequest, served: tuple[Cluster, Process]) -> Iterator[anthropic.Anthropic]:
    process = served[1]
    url = process.url if request.param == "router" else process.node_url
    wait_until(lambda: httpx.get(f"{url}/v1/models").json()["data"], 10, "a gateway that knows its models")
    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0, timeout=60) as it:
        yield it


def texts(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_an_answer_is_the_one_that_openai_clients_get(
    client: anthropic.Anthropic, served: tuple[Cluster, Process]
) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=24, messages=QUESTION, extra_body=GREEDY, system="Be brief."
    )
    body = {"model": MODEL, "max_tokens": 24, "temperature": 0}
    turns = [{"role": "system", "content": "Be brief."}, *QUESTION]
    other = httpx.post(f"{served[1].url}/v1/chat/completions", json={**body, "messages": turns}, timeout=60).json()
    assert texts(message) == other["choices"][0]["message"]["content"]
    assert message.stop_reason == "max_tokens"
    usage = message.usage
    assert usage.output_tokens == 24
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == other["usage"]["prompt_tokens"]


def test_a_stream_gives_the_same_text_and_usage(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "messages": QUESTION, "extra_body": GREEDY}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(pieces) == texts(message) == texts(whole)
    assert len(pieces) > 1
    assert message.usage.output_tokens == 24
    assert message.usage.cache_read_input_tokens == whole.usage.input_tokens + (
        whole.usage.cache_read_input_tokens or 0
    ), "asked once before"


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 40, "messages": QUESTION, "extra_body": GREEDY}
    text = texts(client.messages.create(**asked))
    stop = text[20:26]
    message = client.messages.create(**asked, stop_sequences=["never said", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert texts(message) == text[: text.index(stop)]


def test_tokens_are_counted_as_the_answer_counts_them(client: anthropic.Anthropic) -> None:
    tools: Any = [{"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}]
    asked: Any = {"model": MODEL, "messages": QUESTION, "system": "You can add.", "tools": tools}
    counted = client.messages.count_tokens(**asked).input_tokens
    usage = client.messages.create(**asked, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    long = [{"role": "user", "content": "tree " * 5000}]
    assert client.messages.count_tokens(model=MODEL, messages=long).input_tokens > 5000  # type: ignore[arg-type]


def test_a_tool_that_must_be_called_is_called_and_its_result_is_read(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    tools: Any = [{"name": "weather", "description": "The weather of a city.", "input_schema": schema}]
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
    asked: Any = {"model": MODEL, "max_tokens": 60, "extra_body": GREEDY, "tools": tools}
    with client.messages.stream(**asked, messages=messages, tool_choice=FORCED) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    call = next(block for block in message.content if block.type == "tool_use")
    assert call.name == "weather"
    assert call.input["city"] in ("Oslo", "Rome")
    messages.append({"role": "assistant", "content": message.content})
    messages.append(
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 31 °C."}]}
    )
    answer = client.messages.create(**asked, messages=messages, tool_choice={"type": "none"})
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert texts(answer)


@pytest.mark.parametrize("client", ["router"], indirect=True)
def test_the_clients_own_tool_runner_runs_a_tool(client: anthropic.Anthropic) -> None:
    @anthropic.beta_tool
    def weather(city: Literal["Oslo", "Rome"]) -> str:
        """The weather of a city."""
        return f"It is sunny in {city}."

    runner = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=60, tools=[weather], tool_choice=FORCED, max_iterations=2, messages=QUESTION
    )
    answers = list(runner)
    assert [answer.stop_reason for answer in answers] == ["tool_use", "tool_use"]


@pytest.mark.parametrize("client", ["router"], indirect=True)
def test_what_coding_agents_send_is_taken(client: anthropic.Anthropic) -> None:
    cached: Any = {"type": "ephemeral"}
    tool: Any = {"name": "read", "description": "Reads.", "input_schema": {"type": "object"}, "cache_control": cached}
    use: Any = {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {}, "caller": {"type": "direct"}}
    result: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "cache_control": cached}
    thinking: Any = {"type": "thinking", "thinking": "", "signature": "x"}
    message = client.beta.messages.create(
        model=MODEL,
        max_tokens=32_000,
        system=[{"type": "text", "text": "You are an agent.", "cache_control": cached}],
        messages=[
            *QUESTION,
            {"role": "assistant", "content": [thinking, {"type": "redacted_thinking", "data": "x"}, use]},
            {"role": "user", "content": [{**result, "content": [{"type": "text", "text": "no such file"}]}]},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the capital of Japan?"},
        ],
        tools=[{**tool, "eager_input_streaming": True, "strict": True, "defer_loading": False}],
        tool_choice={"type": "none"},
        thinking={"type": "adaptive"},
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        metadata={"user_id": "u"},
        service_tier="auto",
        stop_sequences=["."],
        betas=["interleaved-thinking-2025-05-14"],
        extra_body=GREEDY,
    )
    assert message.stop_reason in ("stop_sequence", "end_turn", "max_tokens")
    assert message.usage.output_tokens > 0


def test_models_are_listed_in_the_clients_own_shape(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list().data
    assert (model.type, model.lifecycle) == ("model", "active")
    assert client.models.retrieve(MODEL).id == MODEL
    assert client.messages.create(model=model.id, max_tokens=1, messages=QUESTION).model == model.id


def test_errors_are_those_that_the_client_knows(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="no-such-model", max_tokens=5, messages=QUESTION)
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as long:
        client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "tree " * 5000}])
    assert "1024" in str(long.value)
    pixel: dict[str, Any] = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    image: Any = [{"type": "image", "source": pixel}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content"):
        client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": image}])


def test_a_client_that_goes_away_frees_the_slot(client: anthropic.Anthropic, served: tuple[Cluster, Process]) -> None:
    def running() -> int:
        models = httpx.get(f"{served[1].node_url}/v0/ps").json()["models"]
        return int(sum(model["running"] + model["queued"] for model in models))

    wait_until(lambda: running() == 0, 5, "an idle engine")
    endless: Any = [{"role": "user", "content": "What is the capital of France?"}]  # greedy: never ends by itself
    with client.messages.stream(model=MODEL, max_tokens=900, extra_body=GREEDY, messages=endless) as stream:
        next(iter(stream.text_stream))
        assert running() == 1
    wait_until(lambda: running() == 0, 5, "the slot is free again")
