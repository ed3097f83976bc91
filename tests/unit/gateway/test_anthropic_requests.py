"""Bodies of Anthropic's routes as the bus carries them; and what is refused, by name."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.gateway.anthropic_schema import CountRequest, MessagesRequest
from llmlb.router.gateway.openai_messages import MAX_PARTS
from llmlb.router.gateway.openai_schema import parse
from llmlb.router.redaction import kept_body
from tests.unit.gateway.scripted import Scripted, serving

PIXEL = base64.b64encode(b"\x89PNG not really").decode()
IMAGE: dict[str, Any] = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
TOOL: dict[str, Any] = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}
USE: dict[str, Any] = {"type": "tool_use", "id": "t1", "name": "add", "input": {"x": 1}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "t1", "content": "2"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def model(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def body(**more: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 10, "messages": [user("hi")], **more}).encode()


def asked(**more: Any) -> InferRequest:
    request, images = parse(MessagesRequest, body(**more)).request("r")
    assert not images
    return request


def turns(*messages: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in asked(messages=messages, **more).messages]


def test_a_plain_question() -> None:
    request = asked()
    assert [(turn.role, turn.content) for turn in request.messages] == [("user", "hi")]
    assert (request.kind, request.model, request.sampling.max_tokens) == ("chat", "m", 10)
    assert request.sampling.temperature is None
    assert not request.count_only


def test_the_system_prompt_comes_first_as_text_or_as_blocks() -> None:
    assert turns(user("hi"), system="Be brief.")[0] == ("system", "Be brief.")
    blocks = [
        {"type": "text", "text": "Be"},
        {"type": "text", "text": "brief.", "cache_control": {"type": "ephemeral"}},
    ]
    assert turns(user("hi"), system=blocks)[0] == ("system", "Be\nbrief.")
    assert turns(user("hi"), system="") == [("user", "hi")]


def test_turns_of_the_same_role_in_a_row_are_one() -> None:
    assert turns(user("a"), user([{"type": "text", "text": "b"}]), model("c"), model("d"), user("e")) == [
        ("user", "a\nb"),
        ("assistant", "c\nd"),
        ("user", "e"),
    ]


def test_results_of_tools_are_turns_of_their_own() -> None:
    request = asked(
        messages=[
            user("add"),
            model([{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "ok"}, USE]),
            user([RESULT, {**RESULT, "content": [{"type": "text", "text": "3"}]}, {"type": "text", "text": "and?"}]),
        ],
        tools=[TOOL],
    )
    assert [(turn.role, turn.content, turn.tool_call_id) for turn in request.messages[1:]] == [
        ("assistant", "ok", None),
        ("tool", "2", "t1"),
        ("tool", "3", "t1"),
        ("user", "and?", None),
    ]
    assert request.messages[1].reasoning == "Hm."
    (call,) = request.messages[1].tool_calls
    assert (call.id, call.name, call.arguments) == ("t1", "add", '{"x":1}')
    (tool,) = request.tools
    assert (tool.name, tool.description, tool.parameters) == ("add", "Adds.", '{"type":"object","properties":{}}')


def test_a_result_without_content_is_an_empty_one() -> None:
    assert turns(user("a"), model([USE]), user([{"type": "tool_result", "tool_use_id": "t1"}]))[-1] == ("tool", "")


def test_images_are_parts_in_their_place_also_in_results() -> None:
    request = asked(messages=[user([{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}])])
    (turn,) = request.messages
    assert [(part.type, part.text, part.data) for part in turn.parts] == [
        *[("text", "a", ""), ("image", "", PIXEL), ("text", "b", "")]
    ]
    request = asked(messages=[user("x"), model([USE]), user([{**RESULT, "content": [IMAGE]}])])
    assert [part.type for part in request.messages[-1].parts] == ["image"]


def test_documents_of_text_are_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "the document"}
    assert turns(user([{"type": "document", "source": source}])) == [("user", "the document")]


def test_documents_and_search_results_are_text_with_what_they_are_called() -> None:
    text = {"type": "text", "text": "one"}
    document = {"type": "document", "title": "T", "context": "C", "source": {"type": "text", "data": "d"}}
    blocks = {"type": "document", "source": {"type": "content", "content": [text, IMAGE]}}
    found = {"type": "search_result", "source": "s", "title": "t", "content": [text], "citations": {"enabled": False}}
    assert turns(user([document])) == [("user", "T\nC\nd")]
    assert turns(user([{**blocks, "source": {"type": "content", "content": "two"}}])) == [("user", "two")]
    (turn,) = asked(messages=[user([blocks])]).messages
    assert [part.type for part in turn.parts] == ["text", "image"]
    assert turns(user([found])) == [("user", "s\nt\none")]
    (result,) = asked(messages=[user([{**RESULT, "content": [found, document]}])]).messages
    assert (result.role, result.content) == ("tool", "s\nt\none\nT\nC\nd")


def test_blocks_within_documents_count_too() -> None:
    text = {"type": "text", "text": "x"}
    document = {"type": "document", "source": {"type": "content", "content": [text] * MAX_PARTS}}
    for blocks in (
        [document],
        [{"type": "search_result", "content": [text] * MAX_PARTS}],
        [{**RESULT, "content": [document]}],
    ):
        with pytest.raises(InvalidRequest, match="parts") as caught:
            asked(messages=[user(blocks)])
        assert caught.value.param == "messages"


def test_thinking_that_only_others_can_read_is_left_out() -> None:
    assert turns(
        user("a"), model([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "b"}]), user("c")
    )[1] == ("assistant", "b")


@pytest.mark.parametrize(
    ("thinking", "think"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 2000}, True),
        ({"type": "adaptive"}, None),
    ],
)
def test_thinking_is_off_unless_it_is_asked_for(thinking: Any, think: bool | None) -> None:
    assert asked(thinking=thinking).think is think


def test_the_budget_of_thinking_goes_to_the_node_when_there_is_thinking() -> None:
    for thinking, most in (
        ({"type": "enabled", "budget_tokens": 1500}, 1500),
        ({"type": "disabled", "budget_tokens": 1500}, None),
        ({"type": "adaptive"}, None),
        (None, None),
    ):
        request = asked(thinking=thinking)
        assert request.sampling.thinking_tokens == most


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None, True)),
        ({"type": "auto"}, ("auto", None, True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", None, False)),
        ({"type": "any"}, ("required", None, True)),
        ({"type": "none"}, ("none", None, True)),
        ({"type": "tool", "name": "add", "disable_parallel_tool_use": True}, ("required", "add", False)),
    ],
)
def test_whether_tools_may_or_must_be_called(choice: Any, expected: Any) -> None:
    request = asked(tools=[TOOL], tool_choice=choice)
    assert (request.tool_choice, request.tool_name, request.parallel_tool_calls) == expected


def test_how_tokens_are_chosen() -> None:
    sampling = asked(temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["END", "\n\nHuman:"]).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert sampling.stop == ("END", "\n\nHuman:")


def test_an_answer_can_have_a_schema() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    format = asked(output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "low"}).response_format
    assert format.type == "json_schema"
    assert json.loads(format.json_schema or "") == schema


def test_the_older_name_of_the_form_of_an_answer_is_known() -> None:
    schema = {"type": "object", "properties": {}}
    form = asked(output_format={"type": "json_schema", "schema": schema}).response_format
    assert json.loads(form.json_schema or "") == schema


@pytest.mark.parametrize(("choice", "form"), [("auto", "json_schema"), ("none", "json_schema"), ("any", "text")])
def test_a_form_stands_beside_tools_unless_one_must_be_called(choice: str, form: str) -> None:
    format = {"type": "json_schema", "schema": {}}
    request = asked(tools=[TOOL], tool_choice={"type": choice}, output_config={"format": format})
    assert (request.response_format.type, len(request.tools)) == (form, 1)


def test_effort_reaches_the_template_of_a_model_that_is_to_think() -> None:
    told = [
        asked(output_config={"effort": effort}, thinking=thinking).template_kwargs
        for effort in ("low", "max")
        for thinking in (None, {"type": "adaptive"})
    ]
    assert [json.loads(one) for one in told] == [{}, {"reasoning_effort": "low"}, {}, {}]


def test_what_is_unknown_or_says_nothing_of_the_answer_is_ignored() -> None:
    ignored = {"metadata": {"user_id": "u"}, "service_tier": "auto", "cache_control": None, "context_management": {}}
    assert asked(**ignored, nonsense=1, betas=["x"]).messages == asked().messages


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [user([])]}, "messages.0.content"),
        ({"messages": [user(["x"])]}, "messages.0.content.0"),
        ({"messages": [user([{"type": "video"}])]}, "messages.0.content.0"),
        ({"messages": [user([{"type": "text"}])]}, "messages.0.content.0.text"),
        ({"messages": [user([USE])]}, "messages.0.content.0"),
        ({"messages": [model([RESULT]), user("x")]}, "messages.0.content.0"),
        ({"messages": [user("x"), model("The answer is")]}, "messages"),
        ({"messages": [user("x"), model([{**USE, "input": "x"}]), user([RESULT])]}, "messages.1.content.0.input"),
        ({"messages": [user([{**RESULT, "tool_use_id": 7}])]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [user([{**RESULT, "content": [USE]}])]}, "messages.0.content.0.content.0.type"),
        ({"messages": [user([{**RESULT, "content": 7}])]}, "messages.0.content.0.content"),
        ({"messages": [user([{"type": "image", "source": {"type": "file"}}])]}, "messages.0.content.0.source"),
        (
            {"messages": [user([{"type": "image", "source": {**IMAGE["source"], "media_type": "image/tiff"}}])]},
            "messages.0.content.0.source.media_type",
        ),
        (
            {"messages": [user([{"type": "image", "source": {**IMAGE["source"], "media_type": {}}}])]},
            "messages.0.content.0.source.media_type",
        ),
        (
            {"messages": [user([{"type": "image", "source": {**IMAGE["source"], "data": "%"}}])]},
            "messages.0.content.0.source",
        ),
        (
            {"messages": [user([{"type": "document", "source": {"type": "base64", "data": PIXEL}}])]},
            "messages.0.content.0.source",
        ),
        ({"messages": [user([IMAGE] * 33)]}, "messages"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"system": 7}, "system"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"stop_sequences": ["  "]}, "stop_sequences.0"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"tools": [{"name": "add"}]}, "tools.0.input_schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name"),
        ({"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]}, "tools.1.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "sub"}}, "tool_choice.name"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"compaction": {"type": "summary"}}, "compaction"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        (
            {"messages": [user([{"type": "search_result", "content": [], "citations": {"enabled": True}}])]},
            "messages.0.content.0.citations.enabled",
        ),
        (
            {"messages": [user([{"type": "document", "source": {"type": "content", "content": [USE]}}])]},
            "messages.0.content.0.source.content.0.type",
        ),
        ({"stream": 1}, "stream"),
    ],
)
def test_what_is_refused_is_named(more: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(**more)
    assert caught.value.param == param


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"model": "\xff"}', b'{"a":' * 10_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(MessagesRequest, data)


def test_a_tool_that_is_nested_too_deeply_is_refused_and_not_a_crash() -> None:
    nested = b'{"a":' * 180 + b"{}" + b"}" * 180
    data = body(tools=[{"name": "t", "input_schema": {}}]).replace(b'"input_schema": {}', b'"input_schema": ' + nested)
    parse(MessagesRequest, data).request("r")
    infinite = body().replace(b"]}", b'], "tools": [{"name": "t", "input_schema": {"x": NaN}}]}')
    with pytest.raises(InvalidRequest) as caught:
        parse(MessagesRequest, infinite).request("r")
    assert caught.value.param == "tools.0.input_schema"


def test_a_count_needs_no_limit() -> None:
    data = json.dumps({"model": "m", "messages": [user("hi")]}).encode()
    request, _ = parse(CountRequest, data).request("r", count_only=True)
    assert request.count_only


async def test_a_refusal_names_its_field_in_the_text(tmp_path: Path) -> None:
    async with serving(tmp_path, Scripted()) as (http, _):
        response: httpx.Response = await http.post("/v1/messages", content=body(tools=[TOOL, {**TOOL, "type": "bash"}]))
        assert response.status_code == 400
        assert response.json()["error"] == {
            "type": "invalid_request_error",
            "message": "tools.1.type: tools of type 'bash' are not supported: 'custom' is",
        }
        url = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
        response = await http.post("/v1/messages", content=body(messages=[user([url])]))
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("messages.0.content.0.source: images behind http URLs")


def test_images_are_cut_out_of_what_is_kept() -> None:
    big = base64.b64encode(bytes(100_000)).decode()
    data = body(
        messages=[user([{"type": "image", "source": {**IMAGE["source"], "data": big}}, {"type": "text", "text": "q"}])]
    )
    kept = kept_body(data)
    assert big[:300] not in kept
    assert '"data": "(cut)"' in kept
    assert '"text": "q"' in kept
