"""Prompts of thousands of turns, on the real model: read a little at a time, and not at all beyond what fits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmlb.bus.errors import ContextOverflow
from llmlb.bus.messages.infer import ChatMessage, InferRequest
from llmlb.node.engine.intake import READ_CHARACTERS
from llmlb.node.engine.llama_cpp import LlamaCppEngine
from tests.support.engine import Driver, chat, smollm2_options

TURN = "It's  {number} o'clock,\n\n\tsaid 日本 \U0001f600 <|im_end|> \u00a0 and <|endoftext|>\u2009went on: 3.14159…  "


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCppEngine]:
    it = LlamaCppEngine(smollm2_options(slots=2, context=512))
    it._test.over = True  # its self-test takes seconds, and other tests have it
    yield it
    it.close()


def talk(turns: int, **more: object) -> InferRequest:
    messages = tuple(
        ChatMessage(role="assistant" if number % 2 else "user", content=TURN.format(number=number))
        for number in range(turns)
    )
    return InferRequest(request_id="r", model="m", kind="chat", messages=messages, **more)


def test_a_text_cut_into_parts_has_the_tokens_of_the_whole(engine: LlamaCppEngine) -> None:
    text = "<|im_start|>user\n" + "".join(TURN.format(number=number) for number in range(300))
    for size in (64, 1000, READ_CHARACTERS):
        parts = engine.model.cut(text, size)
        assert len(parts) > 3
        assert "".join(parts) == text
        assert all(len(part) >= size for part in parts[:-1])
        tokens = [token for part in parts for token in engine.model.tokenize(part, add_special=False)]
        assert tokens == engine.model.tokenize(text, add_special=False)


def test_what_has_no_place_to_cut_stays_whole(engine: LlamaCppEngine) -> None:
    text = "word " * 4 * READ_CHARACTERS
    assert engine.model.cut(text, READ_CHARACTERS) == [text]


def test_a_prompt_beyond_the_context_is_refused_without_being_read_to_its_end(engine: LlamaCppEngine) -> None:
    read: list[int] = []
    tokenize = engine.model.tokenize

    def counting(text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        read.append(len(text))
        return tokenize(text, add_special=add_special, parse_special=parse_special)

    engine.model.tokenize = counting  # type: ignore[method-assign]
    try:
        with pytest.raises(ContextOverflow, match="more than "):
            Driver(engine).one(talk(2000))
    finally:
        engine.model.tokenize = tokenize  # type: ignore[method-assign]
    assert sum(read) < 4 * READ_CHARACTERS


def test_an_answer_goes_on_while_a_long_prompt_is_counted(engine: LlamaCppEngine) -> None:
    driver = Driver(engine)
    running = driver.submit(chat("Tell me a story.", max_tokens=30))
    driver.until(lambda: driver.heard(running).pieces)
    before = len(driver.heard(running).tokens)
    counted = driver.submit(talk(1000, count_only=True))
    driver.until(lambda: driver.heard(counted).over)
    after = len(driver.heard(running).tokens)
    assert after - before > 3, "it got tokens meanwhile"
    usage = driver.heard(counted).usage
    assert usage is not None
    assert usage.prompt_tokens > 20_000
    driver.until(lambda: driver.heard(running).over)


def test_a_long_prompt_can_be_cancelled_while_it_is_read(engine: LlamaCppEngine) -> None:
    driver = Driver(engine)
    counted = driver.submit(talk(1000, count_only=True))
    driver.step()
    assert not driver.heard(counted).over
    assert engine.cancel(counted)
    assert not driver.step(), "nothing is left to do"
    assert not driver.heard(counted).over
