"""Answers of /v1/responses have exactly the structure that the official client's types state, whole and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llmlb.bus.errors import EngineCrashed, ModelUnknown, QueueFull
from llmlb.bus.messages.infer import TokenLogprob, ToolCallPiece, TopLogprob
from llmlb.router.gateway import answers
from tests.unit.gateway.memory_responses import MemoryResponses
from tests.unit.gateway.scripted import Scripted, Step, delta, end, progress, serving, until
from tests.unit.gateway.shapes import ShapeRig, extras, thinking_and_calls

BODY: dict[str, Any] = {"model": "m", "input": "hi"}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
KNOWN_EXTRAS = {"store"}
"""OpenAI's own API says so too, though the type does not know it."""

Rig = ShapeRig[openai.AsyncOpenAI]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    scripted = Scripted()
    scripted.responses = MemoryResponses()
    async with (
        serving(tmp_path, scripted) as (http, port),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client,
    ):
        http.headers["authorization"] = "Bearer k"
        yield ShapeRig(scripted, http, client, "/v1/responses", BODY)


async def whole(rig: Rig, *script: Step, **more: Any) -> Response:
    # Not strict: the official type has a number for what JSON has as a whole one.
    made = Response.model_validate_json((await rig.ask(script, stream=False, more=more)).content)
    assert set(extras(made)) <= KNOWN_EXTRAS
    return made


async def events(rig: Rig, *script: Step, **more: Any) -> list[Any]:
    """Each event, checked."""

    def read(text: str, body: dict[str, Any]) -> Any:
        event = EVENT.validate_json(text)
        assert event.type == body["type"]
        assert set(extras(event)) <= KNOWN_EXTRAS
        return event

    made = await rig.events(script, more, read)
    assert [event.sequence_number for event in made] == list(range(len(made)))
    return made


THINKING_AND_CALLS = thinking_and_calls(" Now.")


async def test_a_plain_answer(rig: Rig) -> None:
    response = await whole(rig, progress(), delta("Hel"), delta("lo"), end(cached_tokens=1, reasoning_tokens=1))
    assert response.output_text == "Hello"
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    (item,) = response.output
    assert item.type == "message"
    assert (item.role, item.status) == ("assistant", "completed")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (3, 2, 5)
    assert response.usage.input_tokens_details.cached_tokens == 1
    assert response.usage.output_tokens_details.reasoning_tokens == 1
    assert response.id.startswith("resp_")


async def test_the_answer_says_what_was_asked(rig: Rig) -> None:
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 99,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "tool_choice": "required",
        "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}],
        "reasoning": {"effort": "low", "summary": "auto"},
        "truncation": "auto",
        "user": "u",
        "prompt_cache_key": "k",
    }
    response = (await whole(rig, delta("x"), end(), **asked)).model_dump(exclude_none=True)
    assert {name: response[name] for name in asked} == asked


async def test_thinking_text_and_calls_are_items_in_their_order(rig: Rig) -> None:
    response = await whole(rig, *THINKING_AND_CALLS)
    thinking, message, first, second = response.output
    assert thinking.type == "reasoning"
    assert thinking.content is not None
    assert (thinking.summary, [part.text for part in thinking.content]) == ([], ["Hmm."])
    assert message.type == "message"
    assert response.output_text == "\n\nLet me see. Now."
    assert first.type == second.type == "function_call"
    assert (first.call_id, first.name, first.arguments, first.status) == ("call_a", "add", '{"x": 1}', "completed")
    assert (second.call_id, second.name, second.arguments) == ("call_b", "now", "")
    assert response.status == "completed"


TEXT = ["response.content_part.added", "response.output_text.delta", "response.output_text.delta"]
TEXT += ["response.output_text.delta", "response.output_text.done", "response.content_part.done"]


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_the_events_of_an_answer_come_in_their_order(rig: Rig, summary: str | None) -> None:
    made = await events(rig, *THINKING_AND_CALLS, reasoning={"summary": summary})
    thought = "reasoning_text" if summary is None else "reasoning_summary_text"
    part = "content_part" if summary is None else "reasoning_summary_part"
    thinking = [f"{part}.added", f"{thought}.delta", f"{thought}.delta", f"{thought}.done", f"{part}.done"]
    added, done = "response.output_item.added", "response.output_item.done"
    arguments = "response.function_call_arguments"
    assert [event.type for event in made] == [
        *("response.created", "response.in_progress"),
        *(added, *(f"response.{one}" for one in thinking), done),
        *(added, *TEXT, done),
        *(added, f"{arguments}.delta", f"{arguments}.delta", f"{arguments}.done", done),
        *(added, f"{arguments}.done", done),
        "response.completed",
    ]
    items = [event.item for event in made if event.type == done]
    final = made[-1].response
    assert final.output == items
    assert final.usage.input_tokens_details.cached_tokens == 4
    assert [event.item.id for event in made if event.type == added] == [item.id for item in items]
    assert made[0].response.status == "in_progress"
    assert len({event.response.id for event in made if hasattr(event, "response")}) == 1
    shown = items[0].content if summary is None else items[0].summary
    assert [one.text for one in shown] == ["Hmm."]


async def test_the_official_client_puts_a_stream_together(rig: Rig) -> None:
    scripted, _, client = rig
    scripted.script = lambda request: THINKING_AND_CALLS
    async with client.responses.stream(**BODY) as stream:
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        response = await stream.get_final_response()
    assert texts == ["\n\nLet me", " see.", " Now."]
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]


@pytest.mark.parametrize("text", ['"', "\\", "\n\r\n", "\u2028", "🎉", "data: [DONE]", "\ue000llmlb\ue000", " "])
async def test_any_text_arrives_as_it_is(rig: Rig, text: str) -> None:
    assert (await whole(rig, delta(text), end())).output_text == text
    made = await events(rig, delta(text), delta(text), delta(text), end())
    assert "".join(event.delta for event in made if event.type == "response.output_text.delta") == text * 3
    assert made[-1].response.output_text == text * 3


async def test_an_answer_that_is_cut_off_is_incomplete(rig: Rig) -> None:
    response = await whole(rig, delta("Hel"), end("length"), max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[-1].status == "incomplete"  # type: ignore[union-attr]
    last = (await events(rig, delta("Hel"), end("length")))[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output[-1].status == "incomplete"


async def test_an_answer_without_text_has_no_items(rig: Rig) -> None:
    assert (await whole(rig, end())).output == []
    made = await events(rig, end())
    assert [event.type for event in made] == ["response.created", "response.in_progress", "response.completed"]


async def test_log_probabilities_are_given_when_asked_for(rig: Rig) -> None:
    top = (TopLogprob(token="a", token_bytes=(97,), logprob=-0.5),)
    tokens = tuple(TokenLogprob(token=one, token_bytes=tuple(one.encode()), logprob=-0.5, top=top) for one in "ab")
    script = [delta("a", logprobs=tokens[:1]), delta("b", logprobs=tokens[1:]), end()]
    more: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    part: Any = (await whole(rig, *script, **more)).output[0].content[0]  # type: ignore[index, union-attr]
    assert [(one.token, one.bytes, one.top_logprobs[0].token) for one in part.logprobs] == [
        ("a", [97], "a"),
        ("b", [98], "a"),
    ]
    assert rig.scripted.begun[-1].sampling.logprobs == 1
    made = await events(rig, *script, **more)
    found = [[one.token for one in event.logprobs] for event in made if event.type == "response.output_text.delta"]
    assert found == [["a"], ["b"]]
    await whole(rig, delta("x"), end())
    assert rig.scripted.begun[-1].sampling.logprobs is None


# Failures


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_text_has_its_status(rig: Rig, stream: bool) -> None:
    scripted, _, client = rig
    scripted.script = lambda request: [QueueFull("full")]
    with pytest.raises(openai.RateLimitError) as caught:
        await client.responses.create(**BODY, stream=stream)
    assert caught.value.code == "queue_full"
    scripted.script = lambda request: [ModelUnknown("model 'm' is unknown", param="model")]
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(**BODY, stream=stream)


async def test_a_stream_that_fails_midway_ends_with_a_failed_response(rig: Rig) -> None:
    made = await events(rig, delta("Hel"), EngineCrashed("the engine worker ended unexpectedly"))
    last = made[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert (last.response.error.code, last.response.error.message) == (
        "server_error",
        "the engine worker ended unexpectedly",
    )
    assert last.response.id == made[0].response.id


async def test_a_failure_after_signs_of_life_is_a_failed_response_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "QUIET_S", 0.0)
    made = await events(rig, progress(), QueueFull("full"))
    assert [event.type for event in made] == ["response.created", "response.in_progress", "response.failed"]
    assert made[-1].response.error.code == "rate_limit_exceeded"


async def test_a_long_wait_is_kept_alive_with_comments(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "QUIET_S", 0.0)
    scripted, http, _ = rig
    scripted.script = lambda request: [progress(), delta("x"), end()]
    response = await http.post("/v1/responses", json={**BODY, "stream": True})
    assert response.text.startswith(": queued\n\nevent: response.created\n")


async def test_a_client_that_goes_away_ends_the_work_and_nothing_is_stored(rig: Rig) -> None:
    scripted, _, client = rig
    scripted.script = lambda request: [delta("x"), asyncio.Event(), end()]
    async with client.responses.stream(**BODY) as stream:
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
    await until(lambda: len(scripted.closed) == 1)
    assert isinstance(scripted.responses, MemoryResponses)
    assert not scripted.responses.kept


async def test_a_tool_loop_of_several_rounds(rig: Rig) -> None:
    scripted, _, client = rig
    rounds: list[list[Step]] = [
        [
            delta(reasoning="I should read."),
            delta(tool_calls=(ToolCallPiece(index=0, id="call_1", name="read", arguments='{"path": "a"}'),)),
            delta(tool_calls=(ToolCallPiece(index=1, id="call_2", name="read", arguments='{"path": "b"}'),)),
            end("tool_calls"),
        ],
        [delta("Both are "), delta("empty."), end()],
    ]
    scripted.script = lambda request: rounds[len(scripted.begun) - 1]
    tools: Any = [{"type": "function", "name": "read", "parameters": {"type": "object"}, "strict": False}]
    conversation: list[Any] = [{"role": "user", "content": "What is in them?"}]
    while True:
        async with client.responses.stream(
            model="m", instructions="You are an agent.", tools=tools, input=conversation, store=False
        ) as stream:
            response = await stream.get_final_response()
        conversation += [item.to_dict() for item in response.output]
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            break
        conversation += [{"type": "function_call_output", "call_id": call.call_id, "output": ""} for call in calls]
    assert response.output_text == "Both are empty."
    turns = scripted.begun[-1].messages
    assert [(turn.role, turn.content) for turn in turns] == [
        ("system", "You are an agent."),
        ("user", "What is in them?"),
        ("assistant", ""),
        ("tool", ""),
        ("tool", ""),
    ]
    assert turns[2].reasoning == "I should read."
    assert [call.id for call in turns[2].tool_calls] == [turn.tool_call_id for turn in turns[3:]]
