"""When running answers say what they have: together, and not more often than anybody can read. On the real model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llmlb.node.engine import llama_cpp
from llmlb.node.engine.llama_cpp import LlamaCppEngine
from llmlb.node.engine.llama_native import lib
from tests.support.engine import Driver, chat, smollm2_options

pytestmark = pytest.mark.timeout(300)
STORY = "Write a long story about a fisherman and the sea."
POEM = "Write a poem of many verses about winter."


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    engine = LlamaCppEngine(smollm2_options(slots=3, context=256))
    yield Driver(engine, tested=False)
    engine.close()


def test_every_token_is_a_piece_of_its_own_where_tokens_are_slow(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "COALESCE_S", 0.0)
    heard = driver.one(chat(STORY, max_tokens=12))
    assert [len(piece.token_ids) for piece in heard.pieces] == [1] * 12


def test_the_first_token_never_waits_and_fast_ones_share_a_piece(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = driver.one(chat(STORY, max_tokens=12))
    monkeypatch.setattr(llama_cpp, "COALESCE_S", 3600.0)
    heard = driver.one(chat(STORY, max_tokens=12))
    assert [len(piece.token_ids) for piece in heard.pieces] == [1, 11]
    assert heard.text == alone.text
    assert heard.tokens == alone.tokens


def test_all_answers_speak_in_the_same_step(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "COALESCE_S", 3600.0)
    assert isinstance(driver.engine, LlamaCppEngine)
    handles = [driver.submit(chat(text, max_tokens=100)) for text in (STORY, POEM)]
    driver.until(lambda: all(driver.heard(handle).pieces for handle in handles))
    for _ in range(3):
        driver.step()
    said = [len(driver.heard(handle).pieces) for handle in handles]
    driver.engine._said_at = 0.0  # as if an hour had passed
    driver.step()
    assert [len(driver.heard(handle).pieces) for handle in handles] == [one + 1 for one in said]
    for handle in handles:
        assert driver.engine.cancel(handle)


def test_what_was_collected_goes_out_before_a_prompt_is_computed(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "COALESCE_S", 3600.0)
    handle = driver.submit(chat(STORY, max_tokens=100))
    driver.until(lambda: driver.heard(handle).pieces)
    for _ in range(3):
        driver.step()
    assert len(driver.heard(handle).pieces) == 1
    late = driver.submit(chat("What is the capital of Japan?", max_tokens=2))
    driver.step()
    assert len(driver.heard(handle).pieces) == 2
    assert len(driver.heard(handle).pieces[1].token_ids) == 4
    driver.engine.cancel(handle)
    driver.until(lambda: driver.heard(late).over)


def test_logits_are_those_of_the_last_call_however_many_rows_it_had(driver: Driver) -> None:
    assert isinstance(driver.engine, LlamaCppEngine)
    context, vocabulary = driver.engine.context, driver.engine.model.vocabulary
    seen = []
    driver.engine._slots.empty(0)
    context.forget(0)
    for rows in (1, 3, 1, 2, 40, 1):
        assert context.decode([(100 + rows + at, at, 0, True) for at in range(rows)]) == 0
        fresh = np.ctypeslib.as_array(lib.llama_get_logits(context.handle), (rows, vocabulary))
        assert np.array_equal(context.logits(rows), fresh)
        assert context.logits(rows).ctypes.data == fresh.ctypes.data
        seen.append(fresh[-1].copy())
        context.forget(0)
    assert not np.array_equal(seen[0], seen[1]), "they differ"
