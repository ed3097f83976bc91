"""Thinking apart from the answer, on the real model with a template that opens the block itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
    yield Driver(engine)
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
