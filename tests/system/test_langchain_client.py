"""LangChain on both of its sides, OpenAI's and Anthropic's, against a running gateway with the real model."""

from __future__ import annotations

from typing import Any, Literal

import httpx
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from tests.support.cluster import Cluster, Process

MODEL = "smollm2"
QUESTION = [SystemMessage("Be brief."), HumanMessage("What is the capital of Japan?")]
SURFACES = ("openai", "responses", "anthropic")


class Place(BaseModel):
    """Where a city is."""

    city: Literal["Oslo", "Rome"]
    country: Literal["Norway", "Italy"]


@tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """The weather of a city."""
    return f"Sunny in {city}, 31 °C."


def model(served: tuple[Cluster, Process], surface: str, most: int = 24, **more: Any) -> BaseChatModel:
    """A chat model of LangChain's that speaks this surface."""
    url, key = served[1].url, SecretStr("unused")
    if surface == "anthropic":
        return ChatAnthropic(
            model_name=MODEL,
            base_url=url,
            api_key=key,
            max_retries=0,
            timeout=60,
            stop=None,
            max_tokens_to_sample=most,
            model_kwargs={"extra_body": {"temperature": 0}},
            **more,
        )
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{url}/v1",
        api_key=key,
        max_retries=0,
        timeout=60,
        temperature=0,
        max_completion_tokens=most,
        use_responses_api=surface == "responses",
        stream_usage=True,
        **more,
    )


@pytest.fixture(params=SURFACES)
def surface(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_answer_and_its_stream_are_the_same_on_every_surface(served: tuple[Cluster, Process], surface: str) -> None:
    it = model(served, surface)
    whole = it.invoke(QUESTION)
    assert whole.text == "The capital of Japan is Tokyo."
    pieces = list(it.stream(QUESTION))
    assert len([piece for piece in pieces if piece.text]) > 1
    together = pieces[0]
    for piece in pieces[1:]:
        together += piece
    assert together.text == whole.text
    assert isinstance(whole, AIMessage)
    assert whole.usage_metadata is not None
    counted = whole.usage_metadata
    assert counted["total_tokens"] == counted["input_tokens"] + counted["output_tokens"]
    assert together.usage_metadata is not None, "a stream is counted too"
    assert together.usage_metadata["output_tokens"] == counted["output_tokens"]
    assert together.usage_metadata["input_tokens"] == counted["input_tokens"]


def test_several_questions_at_once_have_their_own_answers(served: tuple[Cluster, Process], surface: str) -> None:
    asked = ["What is the capital of Japan?", "Count to five."]
    it = model(served, surface, 12)
    together = [answer.text for answer in it.batch(asked)]
    assert together == [it.invoke(one).text for one in asked]
    assert together[0] != together[1]


def test_a_tool_is_called_run_and_its_result_is_read(served: tuple[Cluster, Process], surface: str) -> None:
    it = model(served, surface, 60)
    bound = it.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    question = HumanMessage("How is the weather in Rome?")
    called = bound.invoke([question])
    (call,) = called.tool_calls
    assert call["name"] == "weather"
    assert call["args"]["city"] in ("Oslo", "Rome")
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    # LangChain takes "none" for the name of a tool on this surface.
    none: Any = {"type": "none"} if surface == "anthropic" else "none"
    answer = it.bind_tools([weather], tool_choice=none).invoke([question, called, result])
    assert answer.text
    assert not answer.tool_calls


def test_a_tool_call_comes_in_pieces_that_make_the_same_call(served: tuple[Cluster, Process], surface: str) -> None:
    bound = model(served, surface, 60).bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    question = "How is the weather in Rome?"
    whole = bound.invoke(question).tool_calls
    pieces = list(bound.stream(question))
    together = pieces[0]
    for piece in pieces[1:]:
        together += piece
    assert [(call["name"], call["args"]) for call in together.tool_calls] == [  # type: ignore[union-attr]
        (call["name"], call["args"]) for call in whole
    ]


@pytest.mark.parametrize(
    ("surface", "method"),
    [
        ("openai", "json_schema"),
        ("openai", "function_calling"),
        ("responses", "json_schema"),
        ("anthropic", "json_schema"),
        ("anthropic", "function_calling"),
    ],
)
def test_an_answer_has_the_asked_structure(served: tuple[Cluster, Process], surface: str, method: str) -> None:
    structured = model(served, surface, 60).with_structured_output(Place, method=method)
    made = structured.invoke("Rome is in Italy. Where is Rome?")
    assert isinstance(made, Place)


def test_texts_become_vectors(served: tuple[Cluster, Process]) -> None:
    def embeddings(**more: Any) -> OpenAIEmbeddings:
        return OpenAIEmbeddings(
            model=MODEL, base_url=f"{served[1].url}/v1", api_key=SecretStr("unused"), max_retries=0, **more
        )

    made = embeddings(check_embedding_ctx_length=False).embed_documents(["a tree", "the sea"])
    assert len(made) == 2
    assert len(made[0]) == len(made[1]) > 100
    assert made[0] != made[1]


def test_an_unknown_model_is_the_error_that_the_client_knows(served: tuple[Cluster, Process]) -> None:
    missing = model(served, "openai").bind(model="no-such-model")
    with pytest.raises(openai.NotFoundError) as caught:
        missing.invoke(QUESTION)
    assert caught.value.code == "model_not_found"


def test_what_it_counts_is_what_the_gateway_counts(served: tuple[Cluster, Process]) -> None:
    it = model(served, "anthropic", 1)
    counted = it.get_num_tokens_from_messages(QUESTION)
    body = {"model": MODEL, "system": "Be brief.", "messages": [{"role": "user", "content": QUESTION[1].content}]}
    said = httpx.post(f"{served[1].url}/v1/messages/count_tokens", json=body, timeout=60).json()
    assert counted == said["input_tokens"]
