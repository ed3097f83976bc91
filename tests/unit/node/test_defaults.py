from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson
import pytest

from llmlb.bus import codec
from llmlb.bus.messages.infer import ChatMessage, InferRequest, Sampling
from llmlb.node.engine.defaults import with_defaults
from llmlb.node.engine.interface import Defaults, LoadOptions, load_options
from llmlb.router.gateway.openai_schema import ChatRequest

DEFAULTS = Defaults(
    sampling={"temperature": 0.1, "top_k": 3, "repeat_penalty": 1.3},
    stop=("END",),
    system="Be kind.",
    context_length=99,
)
USER = {"role": "user", "content": "Hi"}


def asked(**body: Any) -> InferRequest:
    """A request as a node gets it from a gateway."""
    given = ChatRequest.model_validate({"model": "m", "messages": [USER], **body})
    messages = tuple(ChatMessage(role=each["role"], content=each["content"]) for each in body.get("messages", [USER]))
    request = InferRequest(request_id="r", model="m", kind="chat", messages=messages, sampling=given.sampling())
    return codec.decode_as(InferRequest, codec.encode(request))


def test_a_request_that_says_nothing_gets_the_models_defaults() -> None:
    request = with_defaults(asked(), DEFAULTS)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.repeat_penalty, sampling.stop) == (0.1, 3, 1.3, ("END",))
    assert sampling.top_p is None
    assert [(message.role, message.content) for message in request.messages] == [("system", "Be kind."), ("user", "Hi")]


def test_what_the_request_says_wins_also_where_it_says_the_usual() -> None:
    request = with_defaults(asked(temperature=0, top_k=0, repeat_penalty=1.0, stop="X"), DEFAULTS)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.repeat_penalty, sampling.stop) == (0, 0, 1.0, ("X",))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_prompt_of_the_request_wins(role: str) -> None:
    messages = [{"role": role, "content": "Mine."}, USER]
    assert len(with_defaults(asked(messages=messages), DEFAULTS).messages) == 2


def test_an_older_gateway_does_not_say_what_was_not_given() -> None:
    request = asked()
    old = request.model_copy(update={"sampling": Sampling(**{**dict(request.sampling), "unset": ()})})
    assert with_defaults(old, DEFAULTS).sampling.repeat_penalty == 1.0
    assert with_defaults(old, DEFAULTS).sampling.temperature == 0.1


def test_completions_get_no_system_prompt_and_embeddings_nothing() -> None:
    completion = InferRequest(request_id="r", model="m", kind="completion", prompt="x")
    assert with_defaults(completion, DEFAULTS).messages == ()
    assert with_defaults(completion, DEFAULTS).sampling.temperature == 0.1
    embedding = InferRequest(request_id="r", model="m", kind="embedding", inputs=("x",))
    assert with_defaults(embedding, DEFAULTS) is embedding


def test_a_model_without_defaults_changes_nothing() -> None:
    request = asked()
    assert with_defaults(request, Defaults()) is request


def test_the_options_reach_the_worker_as_they_are() -> None:
    options = LoadOptions("m", "/x", None, 1, 128, 1, defaults=DEFAULTS)
    assert load_options(orjson.loads(orjson.dumps(asdict(options)))) == options
    older = {key: value for key, value in asdict(options).items() if key != "defaults"}
    assert load_options(older).defaults == Defaults()
