"""At temperature 0 an answer depends on its request alone: design.md, "The same answer". On the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmlb.node.engine.llama_cpp import LlamaCppEngine
from tests.support.engine import Driver, Heard, chat, smollm2_options

pytestmark = pytest.mark.timeout(900)  # thousands of tokens, on machines that can be slow
LENGTH = 200
# Greedy answers of SmolLM2 that are long: lists and stories.
QUESTIONS = [
    "Write a long story about a fisherman and the sea.",
    "List twenty animals and say something about each.",
    "Explain in detail how bread is made.",
    "Describe the history of Rome in several paragraphs.",
    "Write a poem of many verses about winter.",
    "Tell me everything about the planets of the solar system.",
    "Write a letter to a friend about a journey through Norway.",
    "Explain how a bicycle works, part by part.",
]
LONG = "Here are my notes of the last year, please read them. " * 50
"""Ten calls of a prefill."""
RESUMED = (1, 17, 50, 150)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    engine = LlamaCppEngine(smollm2_options(slots=9, context=2048))
    yield Driver(engine)
    engine.close()


@pytest.fixture(scope="module")
def alone(driver: Driver) -> list[Heard]:
    """Each question asked with nothing else on the engine."""
    answers = [driver.one(chat(question, max_tokens=LENGTH)) for question in QUESTIONS]
    assert sum(len(answer.tokens) == LENGTH for answer in answers) >= 6, "they are long"
    return answers


def forget(engine: LlamaCppEngine) -> None:
    """As if nothing had ever been asked."""
    engine._slots.forget()


def texts(answers: list[Heard]) -> list[str]:
    return [answer.text for answer in answers]


def test_the_self_test_promises_it(driver: Driver) -> None:
    assert driver.engine.capabilities.same_answer


def test_neighbours_do_not_change_an_answer(driver: Driver, alone: list[Heard]) -> None:
    assert texts(driver.run([chat(question, max_tokens=LENGTH) for question in QUESTIONS])) == texts(alone)


def test_a_long_prefill_beside_them_does_not_change_an_answer(driver: Driver, alone: list[Heard]) -> None:
    handles = [driver.submit(chat(question, max_tokens=LENGTH)) for question in QUESTIONS]
    driver.until(lambda: all(len(driver.heard(handle).tokens) > 5 for handle in handles))
    late = driver.submit(chat(LONG, max_tokens=20))
    driver.until(lambda: all(driver.heard(handle).over for handle in [*handles, late]))
    assert texts([driver.heard(handle) for handle in handles]) == texts(alone)


@pytest.mark.parametrize("after", RESUMED)
def test_an_answer_that_is_resumed_is_the_same(driver: Driver, alone: list[Heard], after: int) -> None:
    handles = []
    for question, answer in zip(QUESTIONS, alone, strict=True):
        delivered = tuple(answer.tokens[:after])
        handles.append(driver.submit(chat(question, max_tokens=LENGTH, continuation=delivered)))
    driver.until(lambda: all(driver.heard(handle).over for handle in handles))
    for handle, answer in zip(handles, alone, strict=True):
        resumed = driver.heard(handle)
        assert [*answer.tokens[:after], *resumed.tokens] == answer.tokens
        assert answer.text.endswith(resumed.text)
        assert resumed.usage is not None
        assert answer.usage is not None
        assert resumed.usage.completion_tokens == answer.usage.completion_tokens


def test_requests_in_the_middle_of_the_self_test_neither_spoil_it_nor_lose_their_cache() -> None:
    engine = LlamaCppEngine(smollm2_options(slots=4, context=256, threads=2))  # a shorter test
    driver = Driver(engine, tested=False)
    for asked in range(4):
        for _ in range(3 * asked):
            assert driver.step(), "the test is not over yet"
        heard = driver.one(chat("What is the capital of Japan?", max_tokens=3))
        assert heard.usage is not None
        assert heard.usage.cached_tokens == (heard.usage.prompt_tokens if asked else 0)
        assert not engine.capabilities.same_answer
    while driver.step():
        pass
    assert engine.capabilities.same_answer
    assert driver.one(chat("What is the capital of Japan?", max_tokens=3)).usage == heard.usage
    engine.close()


def test_the_self_test_waits_until_an_answer_has_gone_out_and_a_request_ends_its_call() -> None:
    engine = LlamaCppEngine(smollm2_options(slots=2, context=256))
    driver = Driver(engine, tested=False)
    decode_run, codes = engine.context.decode_run, list[int]()

    def watched(*call: Any, **more: Any) -> int:
        codes.append(decode_run(*call, **more))
        return codes[-1]

    engine.context.decode_run = watched  # type: ignore[method-assign]
    assert driver.one(chat("What is the capital of Japan?", max_tokens=3)).over
    assert len(codes) == 1, "nothing but the prompt was computed before the end of the answer could be sent"

    def comes() -> bool:
        engine.interrupt(99)  # as the thread does that reads the socket, in the middle of a call
        return own()

    own = engine._stopped
    engine.context.abort_when(comes)
    for _ in range(4):
        assert driver.step(), "an ended call says nothing of the model"
    assert set(codes[1:]) == {2}
    assert not engine.capabilities.same_answer
    engine.context.abort_when(own)
    while driver.step():
        pass
    assert engine.capabilities.same_answer
    engine.close()


def test_what_waits_for_a_slot_is_never_forgotten() -> None:
    engine = LlamaCppEngine(smollm2_options(slots=1, context=256))
    driver = Driver(engine, tested=False)
    heard = driver.run([chat("What is the capital of Japan?", max_tokens=2) for _ in range(5)])
    assert len({one.text for one in heard}) == 1
    engine.close()


@pytest.mark.parametrize("words", [22, 70, 180])
def test_long_contexts_alone_and_beside_others_and_cached_and_resumed(driver: Driver, words: int) -> None:
    """Beyond 256 tokens llama.cpp has a kernel of its own for a single row."""
    prompt = " ".join(f"word{i % 97}" for i in range(words))
    first = driver.one(chat(prompt, max_tokens=40))
    again = driver.one(chat(prompt, max_tokens=40))
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.cached_tokens == again.usage.prompt_tokens
    others = (f"Other {prompt}", "Tell me a story.")
    beside = driver.run([chat(text, max_tokens=40) for text in (prompt, *others)])[0]
    resumed = driver.one(chat(prompt, max_tokens=40, continuation=tuple(first.tokens[:9])))
    assert again.tokens == first.tokens
    assert beside.tokens == first.tokens
    assert [*first.tokens[:9], *resumed.tokens] == first.tokens


def test_the_next_turn_skips_what_is_shared_and_answers_as_without_a_cache() -> None:
    engine = LlamaCppEngine(smollm2_options(slots=2, context=2048))
    driver = Driver(engine, tested=False)
    fresh = LlamaCppEngine(smollm2_options(slots=2, context=2048))
    reference = Driver(fresh, tested=False)
    system = "You are a patient teacher. " * 40
    turns = ["What is a triangle?"]
    for turn in range(3):
        answer = driver.one(chat(*turns, system=system, max_tokens=50))
        assert answer.usage is not None
        if turn:
            assert answer.usage.cached_tokens >= 192, "the whole blocks of the earlier prompt"
        forget(fresh)
        expected = reference.one(chat(*turns, system=system, max_tokens=50))
        assert expected.usage is not None
        assert expected.usage.cached_tokens == 0
        assert answer.tokens == expected.tokens
        turns += [answer.text, "And then?"]
    engine.close()
    fresh.close()


def test_a_shared_system_prompt_is_copied_from_a_slot_that_is_busy(driver: Driver) -> None:
    system = "These are the rules of the house. " * 30
    reference = driver.one(chat("Second?", system=system, max_tokens=40)).tokens
    assert isinstance(driver.engine, LlamaCppEngine)
    forget(driver.engine)
    busy = driver.submit(chat("First?", system=system, max_tokens=80))
    driver.until(lambda: len(driver.heard(busy).tokens) > 3)
    second = driver.one(chat("Second?", system=system, max_tokens=40))
    assert not driver.heard(busy).over
    assert second.usage is not None
    assert second.usage.cached_tokens >= 192
    assert second.tokens == reference
    driver.until(lambda: driver.heard(busy).over)
