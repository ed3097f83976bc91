"""Stored responses over HTTP: going on from them, looking at them, deleting them; and who may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from llmlb.bus.errors import BusDown, MessageTooLarge
from llmlb.bus.messages.infer import InferRequest, ToolCallPiece
from tests.unit.gateway.memory_responses import MemoryResponses
from tests.unit.gateway.scripted import Scripted, Step, delta, end, serving

Rig = tuple[Scripted, MemoryResponses, openai.AsyncOpenAI, httpx.AsyncClient]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    scripted, memory = Scripted(answer), MemoryResponses()
    scripted.responses = memory
    async with (
        serving(tmp_path, scripted) as (http, port),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client,
    ):
        yield scripted, memory, client, http


def answer(request: InferRequest) -> list[Step]:
    return [delta("answer to "), delta(request.messages[-1].content), end()]


def said(request: InferRequest) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in request.messages]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on_from_a_stored_answer(rig: Rig, stream: bool) -> None:
    scripted, _, client, _ = rig

    async def ask(text: str, previous: str | None, **more: Any) -> str:
        asked: Any = {"model": "m", "input": text, "previous_response_id": previous, **more}
        if not stream:
            return (await client.responses.create(**asked)).id
        last: Any = None
        async for event in await client.responses.create(**asked, stream=True):
            last = event
        return str(last.response.id)

    first = await ask("one", None, instructions="Only now.")
    second = await ask("two", first)
    await ask("three", second)
    await ask("other", first)
    assert said(scripted.begun[0]) == [("system", "Only now."), ("user", "one")]
    assert said(scripted.begun[2]) == [
        ("user", "one"),
        ("assistant", "answer to one"),
        ("user", "two"),
        ("assistant", "answer to two"),
        ("user", "three"),
    ]
    assert said(scripted.begun[3]) == [("user", "one"), ("assistant", "answer to one"), ("user", "other")]


async def test_only_results_of_tools_need_to_be_sent(rig: Rig) -> None:
    scripted, _, client, _ = rig
    call = delta(reasoning="Hm.", tool_calls=(ToolCallPiece(index=0, id="c1", name="now", arguments="{}"),))
    scripted.script = lambda request: [call, end("tool_calls")]
    tools: Any = [{"type": "function", "name": "now", "parameters": None, "strict": False}]
    first = await client.responses.create(model="m", input="What time is it?", tools=tools)
    result: Any = {"type": "function_call_output", "call_id": "c1", "output": "noon"}
    await client.responses.create(model="m", input=[result], previous_response_id=first.id, tools=tools)
    turns = scripted.begun[-1].messages
    assert [turn.role for turn in turns] == ["user", "assistant", "tool"]
    assert (turns[1].reasoning, turns[1].tool_calls[0].id, turns[2].tool_call_id) == ("Hm.", "c1", "c1")


@pytest.mark.parametrize("stream", [False, True])
async def test_items_of_an_earlier_answer_can_be_referred_to(rig: Rig, stream: bool) -> None:
    scripted, memory, client, _ = rig
    call = delta("I look.", reasoning="Hm.", tool_calls=(ToolCallPiece(index=0, id="c1", name="now", arguments="{}"),))
    scripted.script = lambda request: [call, end("tool_calls")]
    asked: Any = {"model": "m", "input": "The time?"}
    if stream:
        async with client.responses.stream(**asked) as events:
            first = await events.get_final_response()
    else:
        first = await client.responses.create(**asked)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    scripted.script = answer
    references: list[Any] = [{"type": "item_reference", "id": item.id} for item in first.output]
    turns: list[Any] = [{"role": "user", "content": "The time?"}, *references, {"id": first.output[1].id}]
    turns.append({"type": "function_call_output", "call_id": "c1", "output": "12:00"})
    second = await client.responses.create(model="m", input=turns)
    assert said(scripted.begun[1]) == [("user", "The time?"), ("assistant", "I look.\nI look."), ("tool", "12:00")]
    assert (scripted.begun[1].messages[1].reasoning, scripted.begun[1].messages[1].tool_calls[0].id) == ("Hm.", "c1")
    listed = [item async for item in client.responses.input_items.list(second.id, order="asc")]
    assert [item.type for item in listed] == [
        *("message", "reasoning", "message", "function_call", "message", "function_call_output")
    ]
    await client.responses.delete(first.id)
    await client.responses.create(model="m", input="more", previous_response_id=second.id)
    for bad in (first.output[0].id, "msg_1", "x" * 300, f"msg_{first.id[5:]}0009", ""):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(model="m", input=[turns[0], {"type": "item_reference", "id": bad}])
        assert caught.value.param == "input.1.id"
    assert len(memory.kept) == 2


async def test_a_stored_answer_can_be_seen_and_deleted(rig: Rig) -> None:
    _, memory, client, http = rig
    made = await client.responses.create(model="m", input="one", metadata={"a": "b"})
    assert await client.responses.retrieve(made.id) == made
    response = await http.delete(f"/v1/responses/{made.id}", headers={"authorization": "Bearer k"})
    assert response.json() == {"id": made.id, "object": "response", "deleted": True}
    assert not memory.kept
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model="m", input="two", previous_response_id=made.id)
    assert caught.value.param == "previous_response_id"


async def test_a_conversation_with_a_link_missing_is_not_gone_on_with(rig: Rig) -> None:
    scripted, _, client, _ = rig
    first = await client.responses.create(model="m", input="one")
    second = await client.responses.create(model="m", input="two", previous_response_id=first.id)
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match=first.id):
        await client.responses.create(model="m", input="three", previous_response_id=second.id)
    assert len(scripted.begun) == 2, "no node is bothered"


async def test_its_items_are_listed_in_pages(rig: Rig) -> None:
    _, _, client, _ = rig
    first = await client.responses.create(model="m", input="one")
    image = "data:image/png;base64,iVBORw=="
    content: Any = [{"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": image, "detail": "low"}]
    second = await client.responses.create(
        model="m", input=[{"role": "user", "content": content}], previous_response_id=first.id
    )
    items: list[Any] = [item async for item in client.responses.input_items.list(second.id, limit=1, order="asc")]
    assert [(item.role, item.content[0].text) for item in items] == [
        ("user", "one"),
        ("assistant", "answer to one"),
        ("user", "two"),
    ]
    assert items[2].content[1].image_url == image
    assert len({item.id for item in items}) == 3
    newest = await client.responses.input_items.list(second.id, limit=2)
    assert [item.id for item in newest.data] == [items[2].id, items[1].id]
    for more in ({"limit": 0}, {"limit": 101}, {"after": "nothing"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            await client.responses.input_items.list(second.id, **more)  # type: ignore[arg-type]


async def test_what_is_not_to_be_stored_is_not(rig: Rig) -> None:
    _, memory, client, http = rig
    made = await client.responses.create(model="m", input="one", store=False)
    assert not memory.kept
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    assert (await http.post("/v1/responses", json={"model": "m", "input": "x", "store": False})).json()[
        "store"
    ] is False
    assert (await http.post("/v1/responses", json={"model": "m", "input": "x"})).json()["store"] is True


@pytest.mark.parametrize("trouble", [BusDown("the bus is away"), MessageTooLarge("too large")])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_can_not_be_stored_is_given_and_says_so(rig: Rig, trouble: Any, stream: bool) -> None:
    _, memory, _, http = rig
    memory.trouble = trouble
    response = await http.post("/v1/responses", json={"model": "m", "input": "one", "stream": stream})
    assert response.status_code == 200
    assert "answer to one" in response.text
    last = response.text.strip().rsplit("data: ", 1)[-1]
    assert '"store":false' in last


async def test_a_failed_answer_is_not_stored(rig: Rig) -> None:
    scripted, memory, _, http = rig
    scripted.script = lambda request: [delta("x"), BusDown("the bus is away")]
    response = await http.post("/v1/responses", json={"model": "m", "input": "one", "stream": True})
    assert "response.failed" in response.text
    assert not memory.kept


async def test_another_key_does_not_see_it(rig: Rig) -> None:
    _, _, client, http = rig
    made = await client.responses.create(model="m", input="one")
    other = client.with_options(api_key="other")
    with pytest.raises(openai.NotFoundError):
        await other.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await other.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await other.responses.create(model="m", input="two", previous_response_id=made.id)
    for path in (f"/v1/responses/{made.id}", f"/v1/responses/{made.id}/input_items"):
        assert (await http.get(path)).status_code == 404
    assert (await client.responses.retrieve(made.id)).id == made.id


async def test_another_key_can_not_refer_to_its_items(rig: Rig) -> None:
    _, _, client, _ = rig
    first = await client.responses.create(model="m", input="secret")
    asked: Any = {"model": "m", "input": [{"type": "item_reference", "id": first.output[0].id}]}
    with pytest.raises(openai.NotFoundError):
        await client.with_options(api_key="other").responses.create(**asked)


async def test_what_is_only_for_answers_in_the_background_is_refused(rig: Rig) -> None:
    _, _, client, http = rig
    made = await client.responses.create(model="m", input="one")
    with pytest.raises(openai.BadRequestError):
        await client.responses.cancel(made.id)
    response = await http.get(f"/v1/responses/{made.id}?stream=true", headers={"authorization": "Bearer k"})
    assert response.status_code == 400


@pytest.mark.parametrize("bad", ["x", "..", "a.b", "*", ">", "%20", "resp_" + "0" * 500, "é"])
async def test_an_id_that_is_none_is_not_found(rig: Rig, bad: str) -> None:
    _, _, _, http = rig
    assert (await http.get(f"/v1/responses/{bad}")).status_code in (404, 405)
    response = await http.post("/v1/responses", json={"model": "m", "input": "x", "previous_response_id": bad})
    assert response.status_code in (400, 404)
