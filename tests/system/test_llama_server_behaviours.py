"""What llama.cpp's server is tested for and other tests here are not, on our surfaces with the real model.

Behaviours taken as a list from llama.cpp's ``tools/server/tests/unit`` (test_chat_completion, test_completion,
test_compat_anthropic, test_compat_oai_responses, test_embedding, test_tool_call, test_vision_api); the tests are ours.
Left out is what only its own routes have: /completion, /props, /slots, /infill, LoRA, reranking, tokenizing. Prompts as
token ids, ``ignore_eos``, ``grammar`` and timings in answers are no part of OpenAI's and Anthropic's APIs.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster, Process

MODEL = "smollm2"
CHAT, PLAIN, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
USER = {"role": "user", "content": "What is the capital of Japan?"}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def post(served: tuple[Cluster, Process], path: str, **body: Any) -> httpx.Response:
    return httpx.post(served[1].url + path, json={"model": MODEL, **body}, timeout=60)


def ask(served: tuple[Cluster, Process], path: str, **body: Any) -> dict[str, Any]:
    """An answer that must be one, and short."""
    most = "max_output_tokens" if path == RESPONSES else "max_tokens"
    response = post(served, path, **{"temperature": 0, most: 6, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


# Chat completions


def test_a_text_in_parts_is_the_same_prompt(served: tuple[Cluster, Process]) -> None:
    text = ask(served, CHAT, messages=[USER])
    parts = ask(served, CHAT, messages=[{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}])
    assert parts["choices"][0]["message"] == text["choices"][0]["message"]
    assert parts["usage"]["prompt_tokens"] == text["usage"]["prompt_tokens"]
    two = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of Japan?"}]
    assert ask(served, CHAT, messages=[{"role": "user", "content": two}])["choices"][0]["message"]["content"]


def test_the_role_comes_first_and_alone_and_the_reason_last_without_text(served: tuple[Cluster, Process]) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5, "temperature": 0}
    response = post(served, CHAT, messages=[USER], **options)
    first, *middle, last, usage = events(response)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert not first["choices"][0]["delta"].get("content")
    assert all("role" not in one["choices"][0]["delta"] for one in [*middle, last])
    assert all(one["choices"][0]["finish_reason"] is None for one in [first, *middle])
    assert not last["choices"][0]["delta"].get("content")
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert len({one["id"] for one in events(response)}) == 1
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "form", "found"),
    [
        (CHAT, {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "foooooo"}}}, '"foooooo"'),
        (CHAT, {"type": "json_object"}, "{"),
        (RESPONSES, {"type": "json_schema", "name": "x", "schema": {"const": "foooooo"}}, '"foooooo"'),
        (RESPONSES, {"type": "json_object"}, "{"),
        (RESPONSES, {"type": "text"}, ""),
    ],
)
def test_an_answer_has_the_form_that_was_asked_for(
    served: tuple[Cluster, Process], path: str, form: dict[str, Any], found: str
) -> None:
    if path == CHAT:
        text = ask(served, path, messages=[USER], response_format=form, max_tokens=10)["choices"][0]["message"]
        assert found in text["content"]
    else:
        answer = ask(served, path, input="Write an example", text={"format": form}, max_output_tokens=10)
        assert found in answer["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [USER], "response_format": {"type": "sound"}}, "response_format.type"),
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"messages": "text"}, "messages"),
        (CHAT, {"messages": [123]}, "messages.0"),
        (CHAT, {"messages": [{}]}, "messages.0"),
        (CHAT, {"messages": [{"role": 123}]}, "messages.0"),
        (CHAT, {"messages": [{"role": "system", "content": 123}]}, "messages.0"),
        (CHAT, {"messages": [{"role": "system", "content": "test"}, {}]}, "messages.1"),
        (CHAT, {"messages": []}, "messages"),
        (RESPONSES, {"input": "x", "text": {"format": {"type": "json_schema", "name": "t"}}}, "text.format"),
        (RESPONSES, {"input": [123]}, "input.0"),
        (RESPONSES, {"input": [{"role": "user", "content": 1}]}, "input.0"),
        (MESSAGES, {"max_tokens": 5}, "messages"),
        (MESSAGES, {"max_tokens": 5, "messages": []}, "messages"),
        (MESSAGES, {"messages": [USER]}, "max_tokens"),
        (MESSAGES, {"max_tokens": 0, "messages": [USER]}, "max_tokens"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": {"content": "text"}}, "input"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_it(
    served: tuple[Cluster, Process], path: str, body: dict[str, Any], param: str
) -> None:
    response = post(served, path, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["message"] if path == MESSAGES else error["param"]).startswith(param)


@pytest.mark.parametrize("path", [CHAT, PLAIN, RESPONSES, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_a_400_also_of_a_stream(
    served: tuple[Cluster, Process], path: str, stream: bool
) -> None:
    long = "tree " * 2000
    body: dict[str, Any] = {
        CHAT: {"messages": [{"role": "user", "content": long}]},
        PLAIN: {"prompt": long},
        RESPONSES: {"input": long},
        MESSAGES: {"messages": [{"role": "user", "content": long}], "max_tokens": 5},
    }[path]
    response = post(served, path, **body, stream=stream)
    assert response.status_code == 400
    assert response.headers["content-type"].startswith("application/json")
    assert "1024" in response.json()["error"]["message"], "how much there is room for"


def test_without_tools_or_with_none_of_them_nothing_is_called(served: tuple[Cluster, Process]) -> None:
    tool = {"type": "function", "function": {"name": "python", "parameters": SCHEMA}}
    for more in ({}, {"tools": []}, {"tools": [tool], "tool_choice": "none"}):
        message = ask(served, CHAT, messages=[USER], **more)["choices"][0]["message"]
        assert not message.get("tool_calls")
        assert message["content"]


@pytest.mark.parametrize("url", ["malformed", "file:///etc/passwd", "ftp://127.0.0.1/a.png", "http://127.0.0.1:9/a"])
def test_an_image_that_can_not_be_one_is_refused_on_every_surface(served: tuple[Cluster, Process], url: str) -> None:
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    items = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    blocks = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}]
    for response in (
        post(served, CHAT, messages=chat),
        post(served, RESPONSES, input=items),
        post(served, MESSAGES, messages=blocks, max_tokens=5),
    ):
        assert response.status_code == 400, response.text


# Messages


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": " it?"}]}],
        [USER, {"role": "assistant", "content": "Tokyo."}, {"role": "user", "content": "Sure?"}],
        [USER, {"role": "assistant", "content": [CALL]}, [{"content": "Sunny, 25 °C"}]],
        [USER, {"role": "assistant", "content": [CALL]}, [{"content": "City not found", "is_error": True}]],
        [USER, {"role": "assistant", "content": [CALL]}, [{"type": "text", "text": "Here it is:"}, {"content": "25"}]],
        [USER, {"role": "assistant", "content": [CALL]}, [{"content": "25"}, {"type": "text", "text": "And now?"}]],
        [USER, {"role": "assistant", "content": [CALL]}, [{"content": [{"type": "text", "text": "25"}]}]],
    ],
)
def test_conversations_of_every_kind_are_answered(served: tuple[Cluster, Process], turns: list[Any]) -> None:
    """A list in place of a turn: results of the tool, without what all of them have."""
    result = {"type": "tool_result", "tool_use_id": "t1"}
    messages = [
        turn
        if isinstance(turn, dict)
        else {"role": "user", "content": [part if "type" in part else {**result, **part} for part in turn]}
        for turn in turns
    ]
    answer = ask(served, MESSAGES, messages=messages)
    assert answer["content"][0]["type"] == "text"
    assert answer["usage"]["output_tokens"] > 0
    assert "timings" not in answer
    counted = post(served, "/v1/messages/count_tokens", messages=messages).json()
    assert counted == {"input_tokens": answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"]}


def test_every_field_of_sampling_and_what_is_ignored_is_taken(served: tuple[Cluster, Process]) -> None:
    more: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop_sequences": ["END"]}
    answer = ask(served, MESSAGES, messages=[USER], metadata={"user_id": "u"}, service_tier="auto", **more)
    assert answer["stop_reason"] in ("end_turn", "max_tokens", "stop_sequence")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert ask(served, MESSAGES, messages=[USER], thinking=thinking)["content"][0]["type"] == "text"


def test_blocks_of_a_stream_are_numbered_and_each_begins_and_ends(served: tuple[Cluster, Process]) -> None:
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    asked: dict[str, Any] = {"messages": [USER], "max_tokens": 40, "temperature": 0, "stream": True, "tools": tools}
    for choice in ("auto", "any"):
        made = events(post(served, MESSAGES, **asked, tool_choice={"type": choice}))
        begun = [one["index"] for one in made if one["type"] == "content_block_start"]
        ended = [one["index"] for one in made if one["type"] == "content_block_stop"]
        assert begun == ended == list(range(len(begun)))
        assert (made[0]["type"], made[-1]["type"]) == ("message_start", "message_stop")
        assert made[0]["message"]["content"] == []
        kinds = [one["content_block"]["type"] for one in made if one["type"] == "content_block_start"]
        assert choice == "auto" or "tool_use" in kinds


# Embeddings


def test_the_same_text_has_the_same_vector_alone_and_among_others(served: tuple[Cluster, Process]) -> None:
    text = "The meaning of life"
    alone = post(served, "/v1/embeddings", input=text).json()
    several = post(served, "/v1/embeddings", input=[text, "A much longer text about something else", text]).json()
    first, _, third = (one["embedding"] for one in several["data"])
    (only,) = (one["embedding"] for one in alone["data"])
    assert max(abs(a - b) for a, b in zip(first, third, strict=True)) < 1e-3
    assert max(abs(a - b) for a, b in zip(first, only, strict=True)) < 1e-3
    assert abs(sum(value * value for value in only) - 1) < 1e-3
    twice = post(served, "/v1/embeddings", input=[text, text]).json()["usage"]
    assert twice["prompt_tokens"] == twice["total_tokens"] == 2 * alone["usage"]["prompt_tokens"]
