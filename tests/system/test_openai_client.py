"""The official openai client against both gateways, on the real model."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from llama_cpp import Llama
from pydantic import BaseModel

from llmlb.node.store.bundled import bundled_path
from tests.support.cluster import Cluster, Process, wait_until

MODEL = "smollm2"
NAME = "smollm2:135m-instruct-q4_1"
QUESTION: list[Any] = [{"role": "user", "content": "Name the planets of the solar system."}]


class Place(BaseModel):
    """Where a city is."""

    city: Literal["Oslo", "Rome"]


@pytest.fixture(params=["router", "node"])
def client(request: pytest.FixtureRequest, served: tuple[Cluster, Process]) -> Iterator[openai.OpenAI]:
    process = served[1]
    url = process.url if request.param == "router" else process.node_url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60) as it:
        yield it


@pytest.fixture(scope="module")
def reference() -> Iterator[Llama]:
    """llama-cpp-python's own object on the same file: what is true about tokens and greedy text."""
    with contextlib.redirect_stderr(io.StringIO()):
        # The same kernels as the engine's: flash attention, and prefill in calls of the same size.
        llama = Llama(
            str(bundled_path()), n_ctx=1024, n_threads=1, n_batch=128, n_ubatch=128, flash_attn=True, verbose=False
        )
    yield llama
    llama.close()


def test_a_greedy_answer_is_the_one_of_llama_cpp_itself(client: openai.OpenAI, reference: Llama) -> None:
    expected: Any = reference.create_chat_completion(QUESTION, temperature=0, max_tokens=24)
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24)
    assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.model == MODEL
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert answer.choices[0].finish_reason == "length"


def test_an_answer_that_ends_by_itself_says_stop_and_counts_its_tokens(client: openai.OpenAI, reference: Llama) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of Japan?"}],
        temperature=0,
        max_tokens=200,
    )
    assert answer.choices[0].message.content == "The capital of Japan is Tokyo."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    text = (answer.choices[0].message.content or "").encode()
    # The end-of-turn token is sampled too, and counted.
    assert answer.usage.completion_tokens == len(reference.tokenize(text, add_bos=False)) + 1


def test_a_stream_gives_the_same_text_and_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=16)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            temperature=0,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    # Tokens that come within 30 ms share an event: at least the role, the first token, two more pieces, end and usage.
    assert len(chunks) >= 6, "text comes as it is made"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details is not None
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens, "asked once before"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_include_usage_no_chunk_has_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=3, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_a_stop_text_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=16)
    text = whole.choices[0].message.content or ""
    stop = text[20:26]
    for stream in (False, True):
        arguments: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 16, "stop": [stop]}
        if stream:
            chunks = list(client.chat.completions.create(**arguments, stream=True))
            got = "".join(c.choices[0].delta.content or "" for c in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            answer = client.chat.completions.create(**arguments)
            got, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
        assert got == text[: text.index(stop)]
        assert reason == "stop"


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=1.2, top_p=0.95, seed=seed, max_tokens=12
        )
        return answer.choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_a_tiny_top_p_is_as_good_as_greedy(client: openai.OpenAI) -> None:
    greedy = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=20)
    narrow = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=2, top_p=1e-6, max_tokens=20)
    assert narrow.choices[0].message.content == greedy.choices[0].message.content


def test_answers_do_not_depend_on_what_runs_beside_them(client: openai.OpenAI) -> None:
    questions = ["Tell me about cats.", "Count to ten.", "What is a tree?", "Write a poem about rain."]

    def ask(question: str) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
        )
        return answer.choices[0].message.content or ""

    alone = [ask(question) for question in questions]
    together: dict[str, str] = {}
    threads = [threading.Thread(target=lambda q=q: together.__setitem__(q, ask(q))) for q in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[question] for question in questions] == alone


def test_plain_completions_work_too(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=10)
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    chunks = list(
        client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=10, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_models_are_listed_and_found_by_name_and_alias(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [NAME]
    assert listed[0].object == "model"
    assert client.models.retrieve(NAME).id == NAME
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("owner/missing:Q4_K_M")
    assert caught.value.code == "model_not_found"


def test_an_unknown_model_is_the_clients_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="owner/missing", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_a_prompt_longer_than_the_context_is_said_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 3000}])
    assert caught.value.code == "context_length_exceeded"
    assert "1024" in caught.value.message


@pytest.mark.parametrize("client", ["router"], indirect=True)
def test_an_answer_is_parsed_whole_and_as_it_comes(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": QUESTION, "response_format": Place, "max_tokens": 60, "temperature": 0}
    parsed = client.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(parsed, Place)
    more: Any = {"logprobs": True, "top_logprobs": 1, "stream_options": {"include_usage": True}}
    with client.chat.completions.stream(**asked, **more) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert kinds == {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"}
    assert final.choices[0].message.parsed == parsed
    assert final.usage is not None


@pytest.mark.parametrize("client", ["router"], indirect=True)
def test_a_tool_or_an_answer_of_a_form_and_only_what_is_allowed(client: openai.OpenAI) -> None:
    tools: Any = [openai.pydantic_function_tool(Place, name=name) for name in ("place", "other")]
    asked: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 60}
    answer = client.chat.completions.parse(**asked, tools=tools[:1], response_format=Place, parallel_tool_calls=False)
    message = answer.choices[0].message
    called = message.tool_calls or []
    assert isinstance(message.parsed or called[0].function.parsed_arguments, Place)
    chosen: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": chosen}
    asked["tools"] = tools
    with client.chat.completions.stream(**asked, tool_choice=choice, parallel_tool_calls=False) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.name for event in done] == ["other"]
    assert isinstance(done[0].parsed_arguments, Place)


def test_what_lies_beneath_an_answer_can_be_looked_at(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 2}
    sent = {"x-request-id": "mine-1"}
    raw = client.chat.completions.with_raw_response.create(**asked, extra_headers=sent)
    assert raw.headers["x-request-id"] == raw.parse()._request_id == "mine-1"
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data:")]
    assert lines[-1] == "data: [DONE]"


def test_vectors_of_texts_and_of_tokens_have_the_models_size(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model=MODEL, input="a tree", encoding_format="float").data[0].embedding
    packed = client.embeddings.create(model=MODEL, input=["a tree"], dimensions=len(floats)).data[0].embedding
    assert packed == pytest.approx(floats)
    assert len(client.embeddings.create(model=MODEL, input=[[1, 2, 3], [4]]).data) == 2
    with pytest.raises(openai.BadRequestError, match=str(len(floats))):
        client.embeddings.create(model=MODEL, input="a tree", dimensions=7)


def running(process: Process) -> int:
    models = httpx.get(f"{process.node_url}/v0/ps").json()["models"]
    return sum(model["running"] + model["queued"] for model in models)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_the_engine_at_once(
    client: openai.OpenAI, served: tuple[Cluster, Process], stream: bool
) -> None:
    process = served[1]
    client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    wait_until(lambda: running(process) == 0, 5, "an idle engine")
    endless = [{"role": "user", "content": "What is the capital of France?"}]  # greedy, this one never ends by itself
    body = {"model": MODEL, "messages": endless, "temperature": 0, "max_tokens": 3000, "stream": stream}
    with httpx.Client(timeout=20 if stream else 0.5) as http:
        if stream:
            with http.stream("POST", f"{client.base_url}chat/completions", json=body) as response:
                pieces = response.iter_bytes()  # kept: httpx closes the connection together with the generator
                next(pieces)
                wait_until(lambda: running(process) == 1, 5, "it is being answered")
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(f"{client.base_url}chat/completions", json=body)
    wait_until(lambda: running(process) == 0, 5, "the slot is free again")  # 3,000 tokens take longer than that


def test_a_client_that_goes_away_during_prefill_frees_the_engine(
    client: openai.OpenAI, served: tuple[Cluster, Process]
) -> None:
    process = served[1]
    client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    long: list[Any] = [{"role": "user", "content": "tree " * 950}]
    with httpx.Client(timeout=0.3) as http, pytest.raises(httpx.ReadTimeout):
        http.post(f"{client.base_url}chat/completions", json={"model": MODEL, "messages": long, "max_tokens": 50})
    wait_until(lambda: running(process) == 0, 3, "the slot is free again")
