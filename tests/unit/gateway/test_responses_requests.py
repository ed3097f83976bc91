"""Bodies of /v1/responses as the bus carries them; and what is refused, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.errors import ContextOverflow, InvalidRequest
from llmlb.bus.messages.infer import ChatMessage, InferRequest
from llmlb.router.gateway.openai_responses_items import items_of, without_oldest
from llmlb.router.gateway.openai_responses_schema import ResponsesRequest
from llmlb.router.gateway.openai_schema import parse
from tests.unit.gateway.scripted import Scripted, delta, end, serving

TOOL: dict[str, Any] = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"x":1}'}
OUTPUT: dict[str, Any] = {"type": "function_call_output", "call_id": "c1", "output": "2"}
PIXEL = "data:image/png;base64,iVBORw=="


def asked(input: Any = "hi", **more: Any) -> InferRequest:
    body = parse(ResponsesRequest, json.dumps({"model": "m", "input": input, **more}).encode())
    body.check()
    request, images = body.request("r", [], items_of(body.input))
    assert not images
    return request


def turns(*items: Any, **more: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in asked(list(items), **more).messages]


def test_a_plain_question() -> None:
    request = asked(instructions="Be brief.", max_output_tokens=9, temperature=0.5, top_p=0.9)
    assert [(turn.role, turn.content) for turn in request.messages] == [("system", "Be brief."), ("user", "hi")]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.logprobs) == (9, 0.5, 0.9, None)
    assert request.think is None


def test_messages_of_every_role_in_short_and_long_form() -> None:
    assert turns(
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ) == [("developer", "d"), ("user", "a\nb"), ("assistant", "c\nd"), ("user", "e")]


def test_what_the_model_said_in_a_row_is_one_turn() -> None:
    request = asked(
        [
            {"role": "user", "content": "add"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"role": "assistant", "content": "ok"},
            CALL,
            {**CALL, "call_id": "c2"},
            OUTPUT,
            {**OUTPUT, "call_id": "c2", "output": [{"type": "input_text", "text": "3"}]},
        ],
        tools=[TOOL],
    )
    user, model, first, second = request.messages
    assert (model.role, model.content, model.reasoning) == ("assistant", "ok", "Hm.")
    assert [(call.id, call.name, call.arguments) for call in model.tool_calls] == [
        ("c1", "add", '{"x":1}'),
        ("c2", "add", '{"x":1}'),
    ]
    assert [(turn.role, turn.content, turn.tool_call_id) for turn in (first, second)] == [
        ("tool", "2", "c1"),
        ("tool", "3", "c2"),
    ]
    assert user.content == "add"


def test_thinking_that_was_shown_as_a_summary_comes_back() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
    messages = asked([{"role": "user", "content": "x"}, item, CALL, OUTPUT], tools=[TOOL]).messages
    assert messages[1].reasoning == "Hm."


def test_images_are_parts_in_their_place() -> None:
    (turn,) = asked(
        [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": PIXEL}],
            }
        ]
    ).messages
    assert [(part.type, part.data) for part in turn.parts] == [("text", ""), ("image", "iVBORw==")]


@pytest.mark.parametrize(
    ("effort", "think", "template"),
    [
        (None, None, {}),
        ("none", False, {}),
        ("minimal", False, {}),
        ("low", True, {"reasoning_effort": "low"}),
        ("high", True, {"reasoning_effort": "high"}),
        ("max", True, {}),
    ],
)
def test_effort_says_whether_the_model_is_to_think(effort: str | None, think: bool | None, template: Any) -> None:
    request = asked(reasoning={"effort": effort})
    assert request.think is think
    assert json.loads(request.template_kwargs) == template


TWO = [TOOL, {**TOOL, "name": "sub"}]
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "sub"}]}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None, ["add", "sub"])),
        ("none", ("none", None, ["add", "sub"])),
        ("required", ("required", None, ["add", "sub"])),
        ({"type": "function", "name": "sub"}, ("required", "sub", ["sub"])),
        (ALLOWED, ("auto", None, ["sub"])),
        ({**ALLOWED, "mode": "required"}, ("required", "sub", ["sub"])),
    ],
)
def test_whether_tools_may_or_must_be_called(choice: Any, expected: Any) -> None:
    request = asked(tools=TWO, tool_choice=choice, parallel_tool_calls=False)
    assert (request.tool_choice, request.tool_name, [tool.name for tool in request.tools]) == expected
    assert not request.parallel_tool_calls


def test_an_answer_can_have_a_form() -> None:
    schema = {"type": "object"}
    format = asked(text={"format": {"type": "json_schema", "name": "n", "schema": schema}}).response_format
    assert (format.type, json.loads(format.json_schema or "")) == ("json_schema", schema)
    assert asked(text={"format": {"type": "json_object"}}).response_format.type == "json_object"
    beside = asked(text={"format": {"type": "json_object"}}, tools=[TOOL])
    assert (beside.response_format.type, len(beside.tools)) == ("json_object", 1)
    forced = asked(text={"format": {"type": "json_object"}}, tools=[TOOL], tool_choice="required")
    assert forced.response_format.type == "text", "such an answer is a call"
    assert asked(text={"format": {"type": "text"}, "verbosity": "low"}).response_format.type == "text"


def test_what_says_nothing_of_the_answer_is_ignored() -> None:
    ignored = {"user": "u", "prompt_cache_key": "k", "service_tier": "auto", "include": ["reasoning.encrypted_content"]}
    assert asked(**ignored, nonsense=1, stream_options={"include_obfuscation": False}).messages == asked().messages


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": None}, "model"),
        ({"input": ""}, None),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [{}]}, "input.0.type"),
        ({"input": [USER, {"type": "computer_call"}]}, "input.1.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.id"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": [USER, {**CALL, "call_id": None}]}, "input.1.call_id"),
        ({"input": [USER, CALL, {**OUTPUT, "output": 7}]}, "input.2.output"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL, {"type": "code_interpreter", "container": {}}]}, "tools.1.type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0"),
        ({"tools": ["x"]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"truncation": "old"}, "truncation"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_is_refused_is_named(more: Any, param: str | None) -> None:
    if param is None:
        assert turns(USER, {"role": "user", "content": ""})[1] == ("user", ""), "an empty text is a text"
        return
    with pytest.raises(InvalidRequest) as caught:
        asked(**more)
    assert caught.value.param == param


@pytest.mark.parametrize("more", [{"tools": [{**TOOL, "parameters": {"x": 2**70}}]}, {"input": [{**USER, "x": 2**70}]}])
async def test_numbers_that_no_answer_can_repeat_are_refused(tmp_path: Path, more: Any) -> None:
    async with serving(tmp_path, Scripted()) as (http, _):
        response = await http.post("/v1/responses", json={"model": "m", "input": "x", **more})
    assert response.status_code == 400
    assert "64" in response.json()["error"]["message"]


# truncation: auto


def conversation(*roles: str) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=str(at)) for at, role in enumerate(roles)]


def test_the_oldest_turns_go_first_and_calls_go_with_their_results() -> None:
    messages = conversation("system", "user", "assistant", "tool", "tool", "user", "assistant", "user")
    shorter = without_oldest(messages)
    assert shorter is not None
    assert [turn.content for turn in shorter] == ["0", "5", "6", "7"]
    assert without_oldest(conversation("system", "user")) is None
    assert without_oldest(conversation("user", "tool")) is None
    while shorter is not None:
        assert shorter[0].role == "system"
        assert shorter[-1].content == "7"
        last, shorter = shorter, without_oldest(shorter)
    assert [turn.content for turn in last] == ["0", "7"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_that_is_too_long_loses_its_oldest_turns_when_it_may(tmp_path: Path, stream: bool) -> None:
    def script(request: InferRequest) -> list[Any]:
        fits = len(request.messages) <= 3
        return [delta("x"), end()] if fits else [ContextOverflow("too long", param="messages")]

    scripted = Scripted(script)
    items = [{"role": ("user", "assistant")[at % 2], "content": str(at)} for at in range(9)]
    body = {"model": "m", "input": items, "stream": stream}
    async with serving(tmp_path, scripted) as (http, _):
        response = await http.post("/v1/responses", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        response = await http.post("/v1/responses", json={**body, "truncation": "auto"})
        assert response.status_code == 200
    assert [turn.content for turn in scripted.begun[-1].messages][-1] == "8"
    assert len({request.request_id for request in scripted.begun}) == len(scripted.begun)


async def test_tokens_of_an_input_are_counted_without_an_answer(tmp_path: Path) -> None:
    scripted = Scripted(lambda request: [end(prompt=12, completion=0)])
    async with serving(tmp_path, scripted) as (http, _):
        response = await http.post("/v1/responses/input_tokens", json={"model": "m", "input": "hi", "tools": [TOOL]})
    assert response.json() == {"object": "response.input_tokens", "input_tokens": 12}
    assert scripted.begun[0].count_only
