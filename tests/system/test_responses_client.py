"""The official openai client's Responses against both gateways, on the real model and a real bus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.cluster import Cluster, Process, wait_until

MODEL = "smollm2"
QUESTION = "Name the planets of the solar system."


def connect(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture(params=["router", "node"])
def client(request: pytest.FixtureRequest, served: tuple[Cluster, Process]) -> Iterator[openai.OpenAI]:
    process = served[1]
    with connect(process.url if request.param == "router" else process.node_url) as it:
        wait_until(lambda: it.models.list().data, 10, "a gateway that knows its models")
        yield it


def test_an_answer_is_the_one_of_chat_completions(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=24)
    messages: Any = [{"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=24)
    assert response.output_text == chat.choices[0].message.content
    assert response.status == "incomplete"
    assert response.usage is not None
    assert chat.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (chat.usage.prompt_tokens, 24)


def test_a_stream_gives_the_same_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": "What is the capital of Japan?", "temperature": 0, "max_output_tokens": 60}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert "".join(pieces) == response.output_text == whole.output_text
    assert len(pieces) > 1
    assert response.status == "completed"


def test_a_conversation_goes_on_at_another_gateway(served: tuple[Cluster, Process]) -> None:
    with connect(served[1].url) as router, connect(served[1].node_url) as node:
        first = router.responses.create(model=MODEL, input="My name is Kim.", temperature=0, max_output_tokens=20)
        asked: Any = {"model": MODEL, "input": "What is my name?", "temperature": 0, "max_output_tokens": 20}
        second = node.responses.create(**asked, previous_response_id=first.id)
        turns: Any = [
            {"role": "user", "content": "My name is Kim."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "What is my name?"},
        ]
        chat = router.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=20)
        assert second.output_text == chat.choices[0].message.content
        assert router.responses.retrieve(second.id) == second
        assert len(list(node.responses.input_items.list(second.id))) == 3
        node.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            router.responses.retrieve(second.id)


def test_items_of_an_answer_can_be_referred_to_at_another_gateway(served: tuple[Cluster, Process]) -> None:
    with connect(served[1].url) as router, connect(served[1].node_url) as node:
        first = router.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=12)
        asked: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 12, "store": False}
        turns = [{"role": "user", "content": QUESTION}, {"role": "user", "content": "And their moons?"}]
        said = {"type": "message", "role": "assistant", "content": first.output_text}
        written = node.responses.create(**asked, input=[turns[0], said, turns[1]])
        reference = {"type": "item_reference", "id": first.output[0].id}
        referred = node.responses.create(**asked, input=[turns[0], reference, turns[1]])
        assert referred.output_text == written.output_text


def test_a_function_that_must_be_called_is_called(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    tools: Any = [{"type": "function", "name": "weather", "parameters": schema, "strict": True}]
    asked: Any = {"model": MODEL, "tools": tools, "temperature": 0, "max_output_tokens": 60}
    first = client.responses.create(
        **asked, input="How is the weather in Rome?", tool_choice="required", parallel_tool_calls=False
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "weather"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    second = client.responses.create(**asked, input=[result], previous_response_id=first.id, tool_choice="none")
    assert second.output_text


def test_tokens_of_an_input_are_counted(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input=QUESTION)
    usage = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=1, store=False).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


def test_a_conversation_that_is_too_long_is_shortened_when_it_may_be(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": "tree " * 1100}, {"role": "assistant", "content": "Yes."}]
    items.append({"role": "user", "content": "Say hello."})
    asked: Any = {"model": MODEL, "input": items, "max_output_tokens": 3}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**asked)
    assert caught.value.code == "context_length_exceeded"
    response = client.responses.create(**asked, truncation="auto")
    assert response.usage is not None
    assert response.usage.input_tokens < 1024
