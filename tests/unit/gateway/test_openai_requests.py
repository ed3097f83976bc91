"""What OpenAI's clients send beside the plain question, as the bus carries it; and what is refused, by name."""

from __future__ import annotations

import array
import base64
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import Embedded, InferRequest
from llmlb.router.gateway.openai_schema import ChatRequest, parse
from tests.unit.gateway.scripted import Scripted, end, serving

USER = {"role": "user", "content": "x"}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "sub", "mul")]


def asked(**more: Any) -> InferRequest:
    body = {"model": "m", "messages": [USER], **more}
    return parse(ChatRequest, json.dumps(body).encode()).request("r")[0]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("more", "think", "told"),
    [
        ({}, None, {}),
        ({"reasoning_effort": None}, None, {}),
        ({"reasoning_effort": "none"}, False, {}),
        ({"reasoning_effort": "minimal"}, False, {}),
        ({"reasoning_effort": "low"}, True, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "xhigh"}, True, {}),
        ({"reasoning_effort": "low", "think": False}, False, {"reasoning_effort": "low"}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high", "a": 1}},
            True,
            {"reasoning_effort": "high", "a": 1},
        ),
    ],
)
def test_effort_says_whether_the_model_is_to_think(more: Any, think: bool | None, told: dict[str, Any]) -> None:
    request = asked(**more)
    assert request.think is think
    assert json.loads(request.template_kwargs) == told


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (allowed("auto", "add", "mul"), ("auto", None, ["add", "mul"])),
        (allowed("required", "mul", "sub"), ("required", None, ["sub", "mul"])),
        (allowed("required", "sub"), ("required", "sub", ["sub"])),
        ({"type": "function", "function": {"name": "add"}}, ("required", "add", ["add", "sub", "mul"])),
        ("none", ("none", None, ["add", "sub", "mul"])),
    ],
)
def test_only_some_of_the_tools_may_be_allowed(choice: Any, expected: Any) -> None:
    request = asked(tools=TOOLS, tool_choice=choice)
    assert (request.tool_choice, request.tool_name, [tool.name for tool in request.tools]) == expected


@pytest.mark.parametrize(("choice", "form"), [(None, "json_object"), ("none", "json_object"), ("required", "text")])
def test_a_form_stands_beside_tools_unless_one_must_be_called(choice: str | None, form: str) -> None:
    request = asked(tools=TOOLS, tool_choice=choice, response_format={"type": "json_object"})
    assert (request.response_format.type, len(request.tools)) == (form, 3)


def test_what_an_assistant_refused_is_its_text() -> None:
    parts = [{"type": "text", "text": "No."}, {"type": "refusal", "refusal": "I can't."}]
    turns = [USER, {"role": "assistant", "content": parts}, {"role": "assistant", "content": None, "refusal": "Never."}]
    assert [turn.content for turn in asked(messages=turns).messages] == ["x", "No.\nI can't.", "Never."]


def test_what_says_nothing_of_the_answer_is_taken() -> None:
    ignored = {
        "service_tier": "auto",
        "store": True,
        "metadata": {"a": "b"},
        "verbosity": "low",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "user": "u",
        "modalities": ["text"],
        "stop": [],
        "tools": [],
        "functions": [],
        "audio": None,
        "function_call": None,
    }
    assert asked(**ignored).messages == asked().messages


def test_a_top_p_of_zero_is_the_likeliest_token_and_many_stop_texts_are_taken() -> None:
    sampling = asked(top_p=0, stop=[f"<{n}>" for n in range(64)]).sampling
    assert sampling.top_p is not None
    assert 0 < sampling.top_p < 1e-6
    assert len(sampling.stop) == 64


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools.0.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "c"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "div")}, "tool_choice.allowed_tools.tools"),
        ({"tools": TOOLS, "tool_choice": allowed("never", "add")}, "tool_choice.allowed_tools.mode"),
        ({"tool_choice": allowed("auto", "add")}, "tool_choice"),
        ({"messages": [USER, {"role": "function", "name": "f", "content": "1"}]}, "messages.1.role"),
        (
            {"messages": [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
            "messages.1.function_call",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "assistant", "refusal": 7}]}, "messages.0.refusal"),
    ],
)
def test_what_is_refused_is_named(more: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(**more)
    assert caught.value.param == param


async def test_the_models_own_size_of_vectors_may_be_asked_for(tmp_path: Path) -> None:
    vector = base64.b64encode(array.array("f", [1.0, -2.5, 0.5]).tobytes()).decode()
    scripted = Scripted(lambda request: [Embedded(request_id="r", seq=1, index=0, vector=vector), end(completion=0)])
    async with (
        serving(tmp_path, scripted) as (_, port),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client,
    ):
        answer = await client.embeddings.create(model="m", input="a", dimensions=3)
        assert answer.data[0].embedding == [1.0, -2.5, 0.5]
        with pytest.raises(openai.BadRequestError, match="3 numbers") as caught:
            await client.embeddings.create(model="m", input="a", dimensions=2)
    assert caught.value.param == "dimensions"
