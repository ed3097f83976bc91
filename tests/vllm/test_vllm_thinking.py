"""Thinking apart from the answer on the vLLM engine; the template opens the block itself. ``make test-vllm``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest, LogitBias, ResponseFormat, Tool
from llmlb.node.engine.vllm import VllmEngine
from tests.vllm.make_checkpoint import TEMPLATE
from tests.vllm.rig import END, Rig, chat, options

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    # vLLM and torch warn of themselves on import.
    pytest.mark.filterwarnings("ignore"),
]
SCHEMA = '{"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}'
FORM = ResponseFormat(type="json_schema", json_schema=SCHEMA)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(options(checkpoint, TEMPLATE + "<think>\n"))
    yield engine
    engine.close()


@pytest.fixture
def rig(engine: VllmEngine) -> Rig:
    return Rig(engine)


def thinking(continuation: tuple[int, ...] = (), **fields: Any) -> InferRequest:
    """It never ends by itself."""
    sampling = {name: fields.pop(name) for name in ("max_tokens", "thinking_tokens", "logprobs") if name in fields}
    endless = {"logit_bias": (LogitBias(token_id=END, bias=-100.0),), **sampling}
    return chat("why?", sampling=endless, continuation=continuation, **fields)


def tokens(engine: VllmEngine, text: str) -> tuple[int, ...]:
    return tuple(engine._vocabulary.encode(text, add_special=False))


def test_a_block_that_never_closes_is_all_thinking_and_counted(rig: Rig) -> None:
    answer = rig.ask(thinking(max_tokens=6))
    assert answer.reasoning
    assert answer.text == ""
    assert answer.usage.reasoning_tokens == answer.usage.completion_tokens == 6


def test_thinking_ends_at_its_budget_and_the_answer_goes_on(rig: Rig, engine: VllmEngine) -> None:
    free = rig.ask(thinking())
    answer = rig.ask(thinking(thinking_tokens=5, logprobs=1))
    assert answer.reasoning
    assert free.reasoning.startswith(answer.reasoning)
    assert answer.text
    assert "think>" not in answer.reasoning + answer.text
    marker = len(tokens(engine, "\n</think>"))
    assert (answer.usage.reasoning_tokens, answer.usage.completion_tokens) == (5 + marker, 24)
    assert len(answer.tokens) == 24
    assert answer.usage.cached_tokens < answer.usage.prompt_tokens, "what it computed itself was not there before"


def test_an_answer_with_a_budget_is_the_same_when_it_goes_on_elsewhere(rig: Rig, engine: VllmEngine) -> None:
    """At each token: before the budget, amid the marker that ends the thinking, and behind it."""
    marker = len(tokens(engine, "\n</think>"))
    whole = rig.ask(thinking(thinking_tokens=3))
    for at in (2, *range(3, 3 + marker + 1), 3 + marker + 2):
        again = rig.ask(thinking(thinking_tokens=3, continuation=whole.tokens[:at]))
        assert whole.tokens[:at] + again.tokens == whole.tokens, at
        assert again.usage.reasoning_tokens == whole.usage.reasoning_tokens


def test_a_budget_and_max_tokens_end_the_answer_where_they_say(rig: Rig) -> None:
    for most in (3, 4, 5):
        answer = rig.ask(thinking(thinking_tokens=3, max_tokens=most))
        assert (answer.reason, answer.usage.completion_tokens, len(answer.tokens)) == ("length", most, most)
        assert answer.text == ""


def test_a_form_holds_for_the_answer_behind_the_thinking(rig: Rig, engine: VllmEngine) -> None:
    answer = rig.ask(thinking(thinking_tokens=4, max_tokens=200, response_format=FORM))
    assert answer.reasoning
    assert json.loads(answer.text)["city"] in ("Oslo", "Rome")
    assert answer.reason == "stop"


def test_a_form_holds_when_the_thinking_began_elsewhere_and_ends_by_itself(rig: Rig, engine: VllmEngine) -> None:
    thought = tokens(engine, "the quick brown\n</think>")
    bias = (LogitBias(token_id=thought[-1], bias=100.0),)
    request = chat(
        "why?", response_format=FORM, continuation=thought[:-1], sampling={"max_tokens": 60, "logit_bias": bias}
    )
    answer = rig.ask(request)
    assert answer.text.lstrip().startswith("{"), "it can't but end its thinking, and then has to begin an object"
    with pytest.raises(InvalidRequest, match="given form"):
        rig.ask(thinking(continuation=(*thought, 70), response_format=FORM))


def test_a_tool_that_must_be_called_is_called_behind_the_thinking(rig: Rig) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    schema["additionalProperties"] = False
    tool = Tool(name="switch", parameters=json.dumps(schema))
    answer = rig.ask(thinking(thinking_tokens=4, max_tokens=200, tools=(tool,), tool_choice="required"))
    assert answer.reasoning
    assert [call.name for call in answer.calls] == ["switch"]
    assert (answer.reason, answer.text) == ("tool_calls", "")


def test_a_request_is_cancelled_behind_its_thinking_too(rig: Rig) -> None:
    handle = rig.submit(thinking(thinking_tokens=2, max_tokens=None))
    rig.until(lambda: rig.answers[handle].text)
    assert rig.engine.cancel(handle)
    assert rig.engine.step(rig) is False
    rig.ask(chat())
    assert rig.engine._llm.output_processor.get_num_unfinished_requests() == 0
