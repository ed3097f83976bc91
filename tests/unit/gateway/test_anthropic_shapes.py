"""Answers of /v1/messages have exactly the structure that the official client's types state, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from pydantic import TypeAdapter

from llmlb.bus.errors import (
    BusDown,
    EngineCrashed,
    EngineStalled,
    LlmlbError,
    ModelUnknown,
    NoCapableNode,
    QueueFull,
)
from llmlb.bus.messages.infer import InferRequest, ToolCallPiece
from llmlb.router.gateway import answers
from tests.unit.gateway.scripted import Scripted, Step, delta, end, progress, serving, until
from tests.unit.gateway.shapes import ShapeRig, extras, thinking_and_calls

BODY: dict[str, Any] = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

Rig = ShapeRig[anthropic.AsyncAnthropic]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    scripted = Scripted()
    async with (
        serving(tmp_path, scripted) as (http, port),
        anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key="k", max_retries=0) as client,
    ):
        yield ShapeRig(scripted, http, client, "/v1/messages", BODY)


async def whole(rig: Rig, *script: Step, **more: Any) -> Message:
    made = Message.model_validate_json((await rig.ask(script, stream=False, more=more)).content, strict=True)
    assert not list(extras(made))
    return made


async def events(rig: Rig, *script: Step, **more: Any) -> list[Any]:
    """Each event, checked; pings are only counted as what they are."""

    def read(text: str, body: dict[str, Any]) -> Any:
        if body["type"] in ("ping", "error"):
            return body
        made = EVENT.validate_json(text, strict=True)
        assert not list(extras(made))
        return made

    return await rig.events(script, more, read)


THINKING_AND_CALLS = thinking_and_calls("\n")


async def test_a_plain_answer(rig: Rig) -> None:
    message = await whole(rig, progress(), delta("Hel"), delta("lo"), end(cached_tokens=1))
    assert [block.model_dump(exclude_none=True) for block in message.content] == [{"type": "text", "text": "Hello"}]
    assert (message.role, message.type, message.model) == ("assistant", "message", "m")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")


async def test_tokens_that_were_cached_are_counted_apart(rig: Rig) -> None:
    usage = (await whole(rig, delta("x"), end(prompt=10, completion=4, cached_tokens=6, reasoning_tokens=1))).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (4, 6, 0)
    assert usage.output_tokens == 4
    assert usage.output_tokens_details is not None
    assert usage.output_tokens_details.thinking_tokens == 1


async def test_thinking_text_and_calls_are_blocks_in_their_order(rig: Rig) -> None:
    message = await whole(rig, *THINKING_AND_CALLS)
    assert [block.model_dump(exclude_none=True) for block in message.content] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": "llmlb"},
        {"type": "text", "text": "\n\nLet me see.\n"},
        {"type": "tool_use", "id": "call_a", "name": "add", "input": {"x": 1}},
        {"type": "tool_use", "id": "call_b", "name": "now", "input": {}},
    ]
    assert message.stop_reason == "tool_use"


async def test_the_events_of_an_answer_come_in_their_order(rig: Rig) -> None:
    made = await events(rig, *THINKING_AND_CALLS)
    said = [(event.type, getattr(event, "index", None)) for event in made]
    begun, more, over = "content_block_start", "content_block_delta", "content_block_stop"
    assert said == [
        ("message_start", None),
        *[(begun, 0), (more, 0), (more, 0), (more, 0), (over, 0)],
        *[(begun, 1), (more, 1), (more, 1), (more, 1), (over, 1)],
        *[(begun, 2), (more, 2), (more, 2), (over, 2)],
        *[(begun, 3), (over, 3)],
        *[("message_delta", None), ("message_stop", None)],
    ]
    deltas = [event.delta.type for event in made if event.type == more]
    assert deltas == ["thinking_delta"] * 2 + ["signature_delta"] + ["text_delta"] * 3 + ["input_json_delta"] * 2
    last = made[-2]
    assert last.delta.stop_reason == "tool_use"
    assert (last.usage.input_tokens, last.usage.cache_read_input_tokens, last.usage.output_tokens) == (6, 4, 7)


async def test_the_official_client_puts_a_stream_together(rig: Rig) -> None:
    scripted, _, client = rig
    scripted.script = lambda request: THINKING_AND_CALLS
    async with client.messages.stream(**BODY) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert texts == ["\n\nLet me", " see.", "\n"]
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.usage.input_tokens == 6
    assert message.content[2].input == {"x": 1}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text", ['"', "\\", "\n\r\n", "\u2028", "🎉", "event: error\ndata: {}", "\ue000llmlb\ue000", " "]
)
async def test_any_text_arrives_as_it_is(rig: Rig, text: str) -> None:
    message = await whole(rig, delta(text), end())
    assert message.content[0].text == text  # type: ignore[union-attr]
    made = await events(rig, delta(text), delta(text), delta(text), end())
    assert "".join(event.delta.text for event in made if event.type == "content_block_delta") == text * 3


async def test_an_answer_without_text_has_no_blocks(rig: Rig) -> None:
    assert (await whole(rig, end())).content == []
    assert [event.type for event in await events(rig, end())] == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (end("stop"), "end_turn", None),
        (end("length"), "max_tokens", None),
        (end("tool_calls"), "tool_use", None),
        (end("stop").model_copy(update={"stop_text": "END"}), "stop_sequence", "END"),
    ],
)
async def test_why_an_answer_ended(rig: Rig, last: Any, reason: str, sequence: str | None) -> None:
    message = await whole(rig, delta("x"), last)
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    shown = (await events(rig, delta("x"), last))[-2].delta
    assert (shown.stop_reason, shown.stop_sequence) == (reason, sequence)


async def test_arguments_that_were_cut_off_are_shown_as_what_they_are(rig: Rig) -> None:
    cut = delta(tool_calls=(ToolCallPiece(index=0, id="a", name="add", arguments='{"x": "lo'),))
    message = await whole(rig, cut, end("length"))
    assert message.content[0].input == {"INVALID_JSON": '{"x": "lo'}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"n": 123456789012345678901234567890}', {"n": 123456789012345678901234567890.0}),
        ('{"s": "\\ud83d"}', None),
        ('{"n": 1e999}', None),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", None),
    ],
    ids=["a large number", "half a surrogate", "infinity", "deeper than can be written"],
)
async def test_odd_arguments_do_not_cost_the_answer(rig: Rig, arguments: str, shown: Any) -> None:
    call = delta(tool_calls=(ToolCallPiece(index=0, id="a", name="f", arguments=arguments),))
    message = await whole(rig, delta("before"), call, end("tool_calls"))
    assert message.content[0].text == "before"  # type: ignore[union-attr]
    assert message.content[1].input == (shown or {"INVALID_JSON": arguments})  # type: ignore[union-attr]


async def test_thinking_can_be_left_out(rig: Rig) -> None:
    omitted = {"thinking": {"type": "adaptive", "display": "omitted"}}
    message = await whole(rig, delta(reasoning="secret"), delta("x"), end(), **omitted)
    assert message.content[0].thinking == ""  # type: ignore[union-attr]
    made = await events(rig, delta(reasoning="secret"), delta("x"), end(), **omitted)
    assert "secret" not in str(made)
    assert [event.type for event in made][1:4] == ["content_block_start", "content_block_delta", "content_block_stop"]


async def test_a_long_wait_is_kept_alive_with_pings(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "QUIET_S", 0.0)
    prefill = progress().model_copy(update={"phase": "prefill", "total": 77})
    script = [progress(), prefill, delta("x"), end()]
    made = await events(rig, *script)
    assert made[:2] == [{"type": "ping"}, {"type": "ping"}]
    assert made[2].message.usage.input_tokens == 77, "as far as it is known by then"
    scripted, _, client = rig
    scripted.script = lambda request: script
    async with client.messages.stream(**BODY) as stream:
        assert await stream.get_final_text() == "x"


# Failures


@pytest.mark.parametrize(
    ("error", "raised", "kind"),
    [
        (QueueFull("full"), anthropic.RateLimitError, "rate_limit_error"),
        (ModelUnknown("model 'm' is unknown", param="model"), anthropic.NotFoundError, "not_found_error"),
        (NoCapableNode("no node"), anthropic.InternalServerError, "overloaded_error"),
        (BusDown("the bus is away"), anthropic.InternalServerError, "overloaded_error"),
        (EngineStalled("no sign of life"), anthropic.InternalServerError, "timeout_error"),
        (EngineCrashed("it died"), anthropic.InternalServerError, "api_error"),
        (RuntimeError("a bug"), anthropic.InternalServerError, "api_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_text_has_its_status_and_type(
    rig: Rig, error: Exception, raised: type[anthropic.APIStatusError], kind: str, stream: bool
) -> None:
    scripted, _, client = rig
    scripted.script = lambda request: [error]
    with pytest.raises(raised) as caught:
        await client.messages.create(**BODY, stream=stream)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["request_id"] == caught.value.response.headers["request-id"] == caught.value.request_id
    if isinstance(error, QueueFull):
        assert caught.value.response.headers["retry-after"] == "1"
    if isinstance(error, RuntimeError):
        assert "a bug" not in str(body)


async def test_a_stream_that_fails_midway_ends_with_one_typed_event(rig: Rig) -> None:
    made = await events(rig, delta("Hel"), EngineCrashed("the engine worker ended unexpectedly"))
    assert [event["type"] if isinstance(event, dict) else event.type for event in made] == [
        *("message_start", "content_block_start", "content_block_delta", "error")
    ]
    assert made[-1]["error"] == {"type": "api_error", "message": "the engine worker ended unexpectedly"}
    scripted, _, client = rig
    scripted.script = lambda request: [delta("Hel"), LlmlbError("it broke")]
    with pytest.raises(anthropic.APIStatusError, match="it broke"):
        async with client.messages.stream(**BODY) as stream:
            await stream.get_final_message()


async def test_a_failure_after_pings_is_an_event_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "QUIET_S", 0.0)
    made = await events(rig, progress(), QueueFull("full"))
    assert [event["type"] for event in made] == ["ping", "error"]
    assert made[1]["error"]["type"] == "rate_limit_error"


async def test_a_client_that_goes_away_ends_the_work(rig: Rig) -> None:
    scripted, _, client = rig
    scripted.script = lambda request: [delta("x"), asyncio.Event(), end()]
    async with client.messages.stream(**BODY) as stream:
        assert await anext(aiter(stream.text_stream)) == "x"
    await until(lambda: len(scripted.closed) == 1)
    with pytest.raises(anthropic.APITimeoutError):
        await client.with_options(timeout=0.2).messages.create(**BODY)
    await until(lambda: len(scripted.closed) == 2)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/nothing", 404, "not_found_error"),
    ],
)
async def test_what_the_server_itself_refuses_is_in_this_shape_too(
    rig: Rig, method: str, path: str, status: int, kind: str
) -> None:
    response = await rig.http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert response.json()["request_id"] == response.headers["request-id"]


async def test_a_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, Scripted(), max_body_bytes=1000) as (http, _):
        response = await http.post("/v1/messages", content=b" " * 2000)
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "request_too_large"


async def test_the_request_id_is_in_the_header_that_the_client_reads(rig: Rig) -> None:
    scripted, _, client = rig
    scripted.script = lambda request: [delta("x"), end()]
    message = await client.messages.create(**BODY, extra_headers={"x-request-id": "mine-1"})
    assert message._request_id == "mine-1"
    response = await client.messages.with_raw_response.create(**BODY, stream=True)
    assert response.headers["request-id"] == response.headers["x-request-id"]


# A coding agent's loop


async def test_a_tool_loop_of_several_rounds(rig: Rig) -> None:
    scripted, _, client = rig
    rounds: list[list[Step]] = [
        [
            delta(reasoning="I should read it."),
            delta("I read the file."),
            delta(tool_calls=(ToolCallPiece(index=0, id="call_1", name="read", arguments='{"path": "a.py"}'),)),
            delta(tool_calls=(ToolCallPiece(index=1, id="call_2", name="read", arguments='{"path": "b.py"}'),)),
            end("tool_calls"),
        ],
        [
            delta(tool_calls=(ToolCallPiece(index=0, id="call_3", name="write", arguments='{"path": "a.py"'),)),
            delta(tool_calls=(ToolCallPiece(index=0, arguments=', "text": "x = 1\\n"}'),)),
            end("tool_calls"),
        ],
        [delta("Done."), end()],
    ]
    scripted.script = lambda request: rounds[len(scripted.begun) - 1]
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    tools: Any = [
        {"name": "read", "description": "Reads a file.", "input_schema": schema},
        {"name": "write", "input_schema": schema, "type": "custom", "cache_control": {"type": "ephemeral"}},
    ]
    files = {"a.py": "x = 0\n", "b.py": ""}
    messages: list[Any] = [{"role": "user", "content": "Set x to 1."}]
    while True:
        async with client.messages.stream(
            model="m", max_tokens=100, system="You are an agent.", tools=tools, messages=messages
        ) as stream:
            message = await stream.get_final_message()
        messages.append({"role": "assistant", "content": message.content})
        if message.stop_reason != "tool_use":
            break
        results = []
        for block in message.content:
            if block.type == "tool_use":
                given: Any = block.input
                files[given["path"]] = given.get("text", files[given["path"]])
                results.append({"type": "tool_result", "tool_use_id": block.id, "content": files[given["path"]]})
        messages.append({"role": "user", "content": results})
    assert files["a.py"] == "x = 1\n"
    assert message.content[0].text == "Done."  # type: ignore[union-attr]
    last: InferRequest = scripted.begun[-1]
    assert [(turn.role, turn.content) for turn in last.messages] == [
        ("system", "You are an agent."),
        ("user", "Set x to 1."),
        ("assistant", "I read the file."),
        ("tool", "x = 0\n"),
        ("tool", ""),
        ("assistant", ""),
        ("tool", "x = 1\n"),
    ]
    assert last.messages[2].reasoning == "I should read it."
    assert [(call.id, call.name, json.loads(call.arguments)) for call in last.messages[2].tool_calls] == [
        ("call_1", "read", {"path": "a.py"}),
        ("call_2", "read", {"path": "b.py"}),
    ]
    assert [turn.tool_call_id for turn in last.messages if turn.role == "tool"] == ["call_1", "call_2", "call_3"]
    assert [tool.name for tool in last.tools] == ["read", "write"]


async def test_the_clients_own_tool_runner_sends_all_turns_when_it_can_have_no_thread(rig: Rig) -> None:
    scripted, _, client = rig
    call = ToolCallPiece(index=0, id="call_1", name="weather", arguments='{"city": "Oslo"}')
    rounds: list[list[Step]] = [[delta(tool_calls=(call,)), end("tool_calls")], [delta("Sunny."), end()]]
    scripted.script = lambda request: rounds[len(scripted.begun) - 1]

    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """The weather of a city."""
        return f"It is sunny in {city}."

    runner = client.beta.messages.tool_runner(
        model="m", max_tokens=50, tools=[weather], messages=[{"role": "user", "content": "Oslo?"}]
    )
    answers = [message async for message in runner]
    assert [answer.stop_reason for answer in answers] == ["tool_use", "end_turn"]
    assert [(turn.role, turn.content) for turn in scripted.begun[1].messages] == [
        ("user", "Oslo?"),
        ("assistant", ""),
        ("tool", "It is sunny in Oslo."),
    ]
    assert [tool.name for tool in scripted.begun[1].tools] == ["weather"]


async def test_tokens_are_counted_without_an_answer(rig: Rig) -> None:
    scripted, http, client = rig
    scripted.script = lambda request: [end(prompt=41, completion=0)]
    counted = await client.messages.count_tokens(
        model="m", system="s", messages=[{"role": "user", "content": "hi"}], tools=[{"name": "t", "input_schema": {}}]
    )
    assert counted.input_tokens == 41
    (request,) = scripted.begun
    assert request.count_only
    assert request.sampling.max_tokens == 1, "a node that can't count makes one token"
    assert [turn.role for turn in request.messages] == ["system", "user"]
    assert [tool.name for tool in request.tools] == ["t"]
    response = await http.post("/v1/messages/count_tokens", json={"model": "m", "messages": BODY["messages"]})
    assert not list(extras(MessageTokensCount.model_validate_json(response.content, strict=True)))
