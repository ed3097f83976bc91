"""LiteLLM's client side, as OpenAI's and as Anthropic's, against a running gateway with the real model.

It must not reach any other machine: its table of prices is the one it brings along.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cluster import Cluster, Process

MODEL = "smollm2"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
ANSWER = "The capital of Japan is Tokyo."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}
]


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own: of pydantic, of the event loop
        module: Any = importlib.import_module("litellm")
        module.telemetry = False
        module.suppress_debug_info = True
        module.drop_params = False
        yield module


@pytest.fixture(params=["openai", "anthropic"])
def asked(request: pytest.FixtureRequest, served: tuple[Cluster, Process]) -> dict[str, Any]:
    """What every call says: the provider and where it is."""
    url = served[1].url
    base = f"{url}/v1" if request.param == "openai" else url
    return {
        "model": f"{request.param}/{MODEL}",
        "api_base": base,
        "api_key": "unused",
        "temperature": 0,
        "max_tokens": 40,
        "num_retries": 0,
        "timeout": 60,
    }


def test_an_answer_and_its_stream_are_the_same(litellm: Any, asked: dict[str, Any]) -> None:
    whole = litellm.completion(**asked, messages=QUESTION)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(litellm.completion(**asked, messages=QUESTION, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    together = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert together.choices[0].message.content == ANSWER
    assert together.usage.completion_tokens == whole.usage.completion_tokens
    assert together.usage.prompt_tokens == whole.usage.prompt_tokens


async def test_a_stream_is_read_without_blocking(litellm: Any, asked: dict[str, Any]) -> None:
    stream = await litellm.acompletion(**asked, messages=QUESTION, stream=True)
    said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(said) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_is_read(litellm: Any, asked: dict[str, Any], stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
    more: Any = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "stream": stream}
    answer = litellm.completion(**asked, messages=messages, **more)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=messages)
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    assert answer.choices[0].finish_reason == "tool_calls"
    messages.append(message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "Sunny, 31 °C."})
    last = litellm.completion(**asked, messages=messages, tools=TOOLS, tool_choice="none")
    assert last.choices[0].message.content
    assert not last.choices[0].message.tool_calls


def test_an_answer_has_the_asked_structure(litellm: Any, asked: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(**asked, messages=[{"role": "user", "content": "Name a city."}], response_format=form)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "Rome")


def test_an_unknown_model_is_its_not_found(litellm: Any, asked: dict[str, Any]) -> None:
    provider = asked["model"].partition("/")[0]
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": f"{provider}/no-such-model"}, messages=QUESTION)


def test_a_prompt_that_is_too_long_is_its_bad_request(litellm: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(litellm.BadRequestError, match="1024"):
        litellm.completion(**asked, messages=[{"role": "user", "content": "tree " * 3000}])


def test_texts_become_vectors(litellm: Any, served: tuple[Cluster, Process]) -> None:
    made = litellm.embedding(
        model=f"openai/{MODEL}", input=["a tree", "the sea"], api_base=f"{served[1].url}/v1", api_key="unused"
    )
    assert [one["index"] for one in made.data] == [0, 1]
    assert len(made.data[0]["embedding"]) > 100


def test_plain_completions_work_too(litellm: Any, served: tuple[Cluster, Process]) -> None:
    made = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        prompt="Once upon a time",
        api_base=f"{served[1].url}/v1",
        api_key="unused",
        temperature=0,
        max_tokens=8,
    )
    assert made.choices[0].text


def test_responses_work_too(litellm: Any, served: tuple[Cluster, Process]) -> None:
    made = litellm.responses(
        model=f"openai/{MODEL}",
        input=QUESTION[0]["content"],
        api_base=f"{served[1].url}/v1",
        api_key="unused",
        temperature=0,
    )
    assert made.output[0].content[0].text == ANSWER
