"""Answers have exactly the structure that the official client's types state, whole and streamed."""

from __future__ import annotations

import array
import base64
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from llmlb.bus.messages.infer import Embedded, InferRequest, TokenLogprob, ToolCallPiece, TopLogprob
from tests.unit.gateway.scripted import Scripted, Step, delta, end, progress, serving

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
KNOWN_EXTRAS = {"reasoning_content"}
"""As DeepSeek, vLLM and llama-server have it; OpenAI's own API does not show thinking."""

T = TypeVar("T", bound=BaseModel)
Rig = tuple[Scripted, httpx.AsyncClient]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    scripted = Scripted()
    async with serving(tmp_path, scripted) as (client, _):
        yield scripted, client


def extras(value: Any) -> Iterator[str]:
    """Fields that the official types don't know, at any depth."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or {}
        for name in type(value).model_fields:
            yield from extras(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            yield from extras(one)


def checked(cls: type[T], text: str | bytes) -> T:
    """The official type, with nothing coerced and nothing unknown."""
    made = cls.model_validate_json(text, strict=True)
    assert set(extras(made)) <= KNOWN_EXTRAS
    return made


async def whole(rig: Rig, *script: Step, **more: Any) -> ChatCompletion:
    scripted, client = rig
    scripted.script = lambda request: script
    response = await client.post("/v1/chat/completions", json={**BODY, **more})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    return checked(ChatCompletion, response.content)


async def streamed(rig: Rig, *script: Step, path: str = "/v1/chat/completions", **more: Any) -> list[str]:
    """The data of each event, the last of which is [DONE]."""
    scripted, client = rig
    scripted.script = lambda request: script
    response = await client.post(path, json={**BODY, **more, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    *events, done = [block[6:] for block in blocks]
    assert done == "[DONE]"
    return events


async def chunks(rig: Rig, *script: Step, **more: Any) -> list[ChatCompletionChunk]:
    made = [checked(ChatCompletionChunk, event) for event in await streamed(rig, *script, **more)]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in made}) == 1
    return made


CALL = [
    delta(tool_calls=(ToolCallPiece(index=0, id="call_a", name="add", arguments='{"x"'),)),
    delta(tool_calls=(ToolCallPiece(index=0, arguments=": 1"),)),
    delta(tool_calls=(ToolCallPiece(index=0, arguments="}"), ToolCallPiece(index=1, id="call_b", name="now"))),
    delta(tool_calls=(ToolCallPiece(index=1, arguments="{}"),)),
    end("tool_calls"),
]


def token(text: str, data: bytes | None = None, *top: tuple[str, float]) -> TokenLogprob:
    return TokenLogprob(
        token=text,
        token_bytes=tuple(text.encode() if data is None else data),
        logprob=-0.5,
        top=tuple(TopLogprob(token=one, token_bytes=tuple(one.encode()), logprob=value) for one, value in top),
    )


async def test_a_plain_answer(rig: Rig) -> None:
    answer = await whole(rig, progress(), delta("Hel"), delta("lo"), end(cached_tokens=1, reasoning_tokens=2))
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content, choice.message.tool_calls) == ("assistant", "Hello", None)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    made = await chunks(rig, delta("Hel"), delta(""), delta("lo"), end())
    assert [chunk.choices[0].delta.content for chunk in made] == ["", "Hel", "lo", None]
    assert [chunk.choices[0].delta.role for chunk in made] == ["assistant", None, None, None]
    assert [chunk.choices[0].finish_reason for chunk in made] == [None, None, None, "stop"]
    assert "usage" not in json.loads((await streamed(rig, end()))[-1])


@pytest.mark.parametrize("text", ['"', "\\", "\n\r\n", "\u2028", "🎉", "\x00", "data: [DONE]", "\ue000llmlb\ue000"])
async def test_any_text_arrives_as_it_is(rig: Rig, text: str) -> None:
    answer = await whole(rig, delta(text), end())
    assert answer.choices[0].message.content == text
    made = await chunks(rig, delta(text), delta(text), end())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in made) == text * 2


async def test_usage_comes_last_when_asked_for(rig: Rig) -> None:
    *before, last = await chunks(rig, delta("x"), end(), n=2, stream_options={"include_usage": True})
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in before)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (3, 4, 7)


async def test_thinking_goes_beside_the_answer(rig: Rig) -> None:
    script = [delta(reasoning="Hm"), delta(reasoning="m."), delta("Yes", reasoning=""), end()]
    message: Any = (await whole(rig, *script)).choices[0].message
    assert (message.content, message.reasoning_content) == ("Yes", "Hmm.")
    deltas: list[Any] = [chunk.choices[0].delta for chunk in await chunks(rig, *script)]
    assert "".join(getattr(one, "reasoning_content", "") for one in deltas) == "Hmm."
    assert "".join(one.content or "" for one in deltas) == "Yes"
    plain: Any = (await whole(rig, delta("Yes"), end())).choices[0].message
    assert not hasattr(plain, "reasoning_content")


async def test_a_call_in_pieces_is_one_call(rig: Rig) -> None:
    (choice,) = (await whole(rig, *CALL)).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls: Any = choice.message.tool_calls
    assert [(call.id, call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("call_a", "function", "add", '{"x": 1}'),
        ("call_b", "function", "now", "{}"),
    ]


async def test_text_before_a_call_is_kept(rig: Rig) -> None:
    (choice,) = (await whole(rig, delta("Let me see."), *CALL)).choices
    assert choice.message.content == "Let me see."
    assert len(choice.message.tool_calls or ()) == 2


async def test_only_the_first_piece_of_a_call_has_its_id_type_and_name(rig: Rig) -> None:
    made = await chunks(rig, *CALL)
    pieces = [piece for chunk in made for piece in chunk.choices[0].delta.tool_calls or ()]
    assert [piece.index for piece in pieces] == [0, 0, 0, 1, 1]
    assert [piece.id for piece in pieces] == ["call_a", None, None, "call_b", None]
    for piece in pieces:
        assert piece.function is not None
        first = {"index", "id", "type", "function"} if piece.id else {"index", "function"}
        assert piece.model_fields_set == first, "null where a text is appended breaks clients"
        assert piece.function.model_fields_set == ({"name", "arguments"} if piece.id else {"arguments"})


async def test_the_official_client_puts_streamed_calls_together(tmp_path: Path) -> None:
    async with serving(tmp_path, Scripted(lambda request: CALL)) as (_, port):
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x")
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        async with client, client.chat.completions.stream(**asked) as stream:
            answer = await stream.get_final_completion()
    calls: Any = answer.choices[0].message.tool_calls
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_a", "add", '{"x": 1}'),
        ("call_b", "now", "{}"),
    ]


async def test_log_probabilities_of_a_chat(rig: Rig) -> None:
    tokens = (token("a", None, ("a", -0.5), ("b", -1.0)), token("\ufffd", b"\xf0\x9f"))
    script = [delta("a", logprobs=tokens[:1]), delta("", logprobs=tokens[1:]), end()]
    more = {"logprobs": True, "top_logprobs": 2}
    logprobs = (await whole(rig, *script, **more)).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.refusal is None
    assert logprobs.content is not None
    assert [(one.token, one.bytes, one.logprob) for one in logprobs.content] == [
        ("a", [97], -0.5),
        ("\ufffd", [0xF0, 0x9F], -0.5),
    ]
    assert [[(top.token, top.logprob) for top in one.top_logprobs] for one in logprobs.content] == [
        [("a", -0.5), ("b", -1.0)],
        [],
    ]
    made = await chunks(rig, *script, **more)
    found = [chunk.choices[0].logprobs for chunk in made]
    assert [one and [entry.token for entry in one.content or ()] for one in found] == [None, ["a"], ["\ufffd"], None]


async def completion(rig: Rig, *script: Step, **more: Any) -> tuple[Completion, list[Completion]]:
    """Whole and streamed."""
    scripted, client = rig
    scripted.script = lambda request: script
    response = await client.post("/v1/completions", json={"model": "m", "prompt": "p", **more})
    assert response.status_code == 200
    return checked(Completion, response.content), await completion_chunks(rig, *script, **more)


async def completion_chunks(rig: Rig, *script: Step, **more: Any) -> list[Completion]:
    """A chunk has no finish reason until the last one, though the official type wants one."""
    made = []
    for event in await streamed(rig, *script, path="/v1/completions", prompt="p", **more):
        body = json.loads(event)
        for choice in body["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        made.append(checked(Completion, json.dumps(body)))
    return made


async def test_a_completion(rig: Rig) -> None:
    answer, made = await completion(rig, delta("Hel"), delta("lo"), end("length"))
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "Hello", "length", None)
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert [chunk.choices[0].text for chunk in made] == ["Hel", "lo", ""]
    assert made[-1].choices[0].finish_reason == "length"


async def test_log_probabilities_of_a_completion_say_where_each_token_begins(rig: Rig) -> None:
    """A character split over tokens counts once, so that offsets stay those of the text."""
    tokens = [token("a"), token(" b", None, (" b", -0.5), (" c", -1.0)), token("\ufffd", b"\xf0\x9f")]
    tokens += [token("\ufffd", b"\x8e\x89"), token("日本"), token("z")]
    script = [
        delta("a b", logprobs=tuple(tokens[:2])),
        delta("", logprobs=tuple(tokens[2:3])),
        delta("🎉", logprobs=tuple(tokens[3:4])),
        delta("日本z", logprobs=tuple(tokens[4:])),
        end(),
    ]
    answer, made = await completion(rig, *script, logprobs=2)
    text = answer.choices[0].text
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [one.token for one in tokens]
    assert logprobs.token_logprobs == [-0.5] * 6
    assert logprobs.top_logprobs == [{}, {" b": -0.5, " c": -1.0}, {}, {}, {}, {}]
    assert logprobs.text_offset is not None
    assert [text[at] for at in logprobs.text_offset] == ["a", " ", "🎉", "日", "日", "z"]
    parts: Sequence[Any] = [chunk.choices[0].logprobs for chunk in made if chunk.choices[0].logprobs]
    assert [at for part in parts for at in part.text_offset] == logprobs.text_offset


async def test_thinking_and_calls_are_no_part_of_a_completion(rig: Rig) -> None:
    answer, made = await completion(rig, delta(reasoning="Hm"), *CALL[:-1], delta("x", reasoning="y"), end())
    assert answer.choices[0].text == "x"
    assert [chunk.choices[0].text for chunk in made] == ["x", ""]


VECTORS = [[1.0, -2.5], [0.25, 3.0], [0.0, 1e-3]]


def embedded(index: int) -> Embedded:
    vector = base64.b64encode(array.array("f", VECTORS[index]).tobytes()).decode()
    return Embedded(request_id="r", seq=1, index=index, vector=vector)


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}, {"encoding_format": None}])
async def test_vectors_come_in_the_order_of_their_inputs(rig: Rig, form: dict[str, Any]) -> None:
    scripted, client = rig
    scripted.script = lambda request: [embedded(2), embedded(0), embedded(1), end(prompt=7, completion=0)]
    response = await client.post("/v1/embeddings", json={"model": "m", "input": ["a", "b", "c"], **form})
    answer = checked(CreateEmbeddingResponse, response.content)
    assert [one.index for one in answer.data] == [0, 1, 2]
    for one, vector in zip(answer.data, VECTORS, strict=True):
        assert one.embedding == pytest.approx(vector)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)


async def test_the_official_client_reads_vectors_in_base64(tmp_path: Path) -> None:
    def script(request: InferRequest) -> list[Step]:
        return [*(embedded(index) for index in range(len(request.inputs))), end(completion=0)]

    async with serving(tmp_path, Scripted(script)) as (http, port):
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as client:
            answer = await client.embeddings.create(model="m", input=["a", "b"])
        raw = await http.post("/v1/embeddings", json={"model": "m", "input": "a", "encoding_format": "base64"})
    assert [list(one.embedding) for one in answer.data] == VECTORS[:2]
    assert raw.json()["data"][0]["embedding"] == embedded(0).vector


@pytest.mark.parametrize(
    "script", [[embedded(0), end()], [embedded(0), embedded(1)], [embedded(1), embedded(2), end()]]
)
async def test_vectors_that_are_missing_are_an_error(rig: Rig, script: list[Step]) -> None:
    scripted, client = rig
    scripted.script = lambda request: script
    response = await client.post("/v1/embeddings", json={"model": "m", "input": ["a", "b"]})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
