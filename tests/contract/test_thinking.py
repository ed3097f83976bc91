"""Thinking apart from the answer, on the real model with a template that opens the block itself."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from llmlb.bus.messages.infer import LogitBias, ResponseFormat
from llmlb.node.engine.llama_cpp import LlamaCppEngine
from tests.support.engine import Driver, chat, smollm2_options

OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
)
QUESTION = "What is the capital of Japan?"


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    engine = LlamaCppEngine(smollm2_options(slots=1, context=512, template=OPENS))
    yield Driver(engine, tested=False)
    engine.close()


def test_a_block_that_never_closes_is_all_thinking_and_counted(driver: Driver) -> None:
    heard = driver.one(chat(QUESTION, max_tokens=6))
    assert heard.reasoning
    assert heard.text == ""
    assert heard.usage is not None
    assert heard.usage.reasoning_tokens == heard.usage.completion_tokens == 6


def test_after_the_block_comes_the_answer_also_when_it_was_begun_elsewhere(driver: Driver) -> None:
    assert isinstance(driver.engine, LlamaCppEngine)
    thought = driver.engine.model.tokenize("Easy.\n</think>\n\nThe capital", add_special=False)
    heard = driver.one(chat(QUESTION, max_tokens=len(thought) + 8, continuation=tuple(thought)))
    assert heard.reasoning == ""
    assert "Tokyo" in heard.text
    assert heard.usage is not None
    assert 0 < heard.usage.reasoning_tokens < heard.usage.completion_tokens


def test_thinking_can_be_switched_off_where_the_template_can(driver: Driver) -> None:
    heard = driver.one(chat(QUESTION, max_tokens=8, think=False))
    assert heard.reasoning == ""
    assert heard.text


def test_a_stop_text_ends_the_answer_and_not_the_thinking(driver: Driver) -> None:
    whole = driver.one(chat(QUESTION, max_tokens=12)).reasoning
    word = whole.split()[1]
    assert driver.one(chat(QUESTION, max_tokens=12, stop=(word,))).reasoning == whole


@pytest.mark.parametrize("budget", [1, 9])
def test_thinking_ends_at_its_budget_and_the_answer_goes_on(driver: Driver, budget: int) -> None:
    assert isinstance(driver.engine, LlamaCppEngine)
    model = driver.engine.model
    (over,) = model.tokenize("<|im_end|>", add_special=False)
    asked = {"max_tokens": 24, "logit_bias": (LogitBias(token_id=over, bias=-100),)}  # it never ends by itself
    free = driver.one(chat(QUESTION, **asked))
    assert free.text == ""
    heard = driver.one(chat(QUESTION, thinking_tokens=budget, **asked))
    assert heard.reasoning
    assert free.reasoning.startswith(heard.reasoning)
    assert heard.text
    assert "think>" not in heard.reasoning + heard.text
    assert heard.usage is not None
    marker = len(model.tokenize("\n</think>", add_special=False))
    assert (heard.usage.reasoning_tokens, heard.usage.completion_tokens) == (budget + marker, 24)


def test_a_budget_that_is_not_used_up_changes_nothing(driver: Driver) -> None:
    assert isinstance(driver.engine, LlamaCppEngine)
    thought = tuple(driver.engine.model.tokenize("Easy.\n</think>\n\nThe capital", add_special=False))
    asked = {"max_tokens": len(thought) + 8, "continuation": thought}
    free, bounded = driver.one(chat(QUESTION, **asked)), driver.one(chat(QUESTION, thinking_tokens=50, **asked))
    assert (bounded.text, bounded.usage) == (free.text, free.usage)


def test_an_answer_with_a_budget_is_the_same_when_it_goes_on_elsewhere(driver: Driver) -> None:
    """At each token: before the budget, amid the marker that ends the thinking, and behind it."""
    whole = driver.one(chat(QUESTION, max_tokens=16, thinking_tokens=4))
    assert len(whole.tokens) > 9
    for at in (2, 4, 5, 6, 7, 9):
        asked = {"max_tokens": 16, "thinking_tokens": 4, "continuation": tuple(whole.tokens[:at])}
        assert driver.one(chat(QUESTION, **asked)).tokens == whole.tokens[at:], at


def test_a_budget_bounds_thinking_that_the_model_began_itself_too(driver: Driver) -> None:
    assert isinstance(driver.engine, LlamaCppEngine)
    begun = tuple(driver.engine.model.tokenize("<think>Hm", add_special=False))
    asked = {"max_tokens": 40, "think": False, "continuation": begun}
    assert driver.one(chat(QUESTION, **asked)).text == ""
    heard = driver.one(chat(QUESTION, thinking_tokens=5, **asked))
    assert heard.reasoning
    assert heard.text


def test_a_grammar_holds_for_the_answer_after_the_budget(driver: Driver) -> None:
    schema = '{"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}'
    form = ResponseFormat(type="json_schema", json_schema=schema)
    request = chat(QUESTION, max_tokens=40, thinking_tokens=4).model_copy(update={"response_format": form})
    heard = driver.one(request)
    assert heard.reasoning
    assert json.loads(heard.text)["city"] in ("Oslo", "Rome")
