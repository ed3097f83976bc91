"""Grammars that take long: what they cost the others, and when they are given up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest, ResponseFormat
from llmlb.node.engine.grammars import schema_gbnf
from llmlb.node.engine.llama_cpp import LlamaCppEngine
from llmlb.node.engine.llama_grammar import GrammarMask, Unfinished, schema_grammar
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.sampling import best
from tests.support.engine import Driver, chat, smollm2_options

MANY = {"enum": [f"{number} bottles" for number in range(700)]}
"""Its first mask takes half a second, when all of the vocabulary is looked at."""
ALIKE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "anyOf": [
                {"type": "array", "items": {"$ref": "#/$defs/node"}, "minItems": 1, "maxItems": 1},
                {"type": "array", "items": {"$ref": "#/$defs/node"}, "minItems": 1, "maxItems": 2},
            ]
        }
    },
}
"""Each bracket may be read in two ways, so there are twice as many readings after each."""


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    engine = LlamaCppEngine(smollm2_options(slots=2, context=512))
    yield Driver(engine, tested=False)
    engine.close()


@pytest.fixture(scope="module")
def model(driver: Driver) -> Model:
    assert isinstance(driver.engine, LlamaCppEngine)
    return driver.engine.model


def shaped(schema: dict[str, Any], **sampling: Any) -> InferRequest:
    form = ResponseFormat(type="json_schema", json_schema=json.dumps(schema))
    return chat("How many?", **sampling).model_copy(update={"response_format": form})


def grammar(schema: dict[str, Any]) -> str:
    return schema_gbnf(schema, schema_grammar)


def test_others_go_on_while_a_token_is_masked(driver: Driver) -> None:
    assert isinstance(driver.engine, LlamaCppEngine)
    answering = driver.engine._answering
    request = shaped(MANY, max_tokens=4, temperature=1.0, top_k=0, seed=1)
    other = driver.submit(chat("Count to a hundred.", max_tokens=200))
    driver.until(lambda: driver.heard(other).tokens)
    slow = driver.submit(request)
    driver.until(lambda: any(job.undecided is not None for job in answering))
    before = len(driver.heard(other).tokens)
    driver.until(lambda: driver.heard(slow).tokens or driver.heard(slow).over)
    assert len(driver.heard(other).tokens) > before + 2
    driver.until(lambda: driver.heard(slow).over)
    driver.engine.cancel(other)
    assert driver.heard(slow).tokens == driver.one(request).tokens, "as it answers alone"


def test_a_request_is_cancelled_while_its_token_is_masked(driver: Driver) -> None:
    assert isinstance(driver.engine, LlamaCppEngine)
    answering = driver.engine._answering
    slow = driver.submit(shaped(MANY, temperature=1.0, top_k=0))
    driver.until(lambda: any(job.undecided is not None for job in answering))
    assert driver.engine.cancel(slow)
    assert not driver.heard(slow).tokens
    assert "bottles" in driver.one(shaped(MANY, max_tokens=20)).text


@pytest.mark.parametrize("wanted", [1, 7, 40])
def test_the_likeliest_allowed_tokens_are_those_of_the_whole_mask(model: Model, wanted: int) -> None:
    random = np.random.default_rng(wanted)
    for text in (grammar({"type": "object"}), 'root ::= "b" [a-z]+', 'root ::= [^z]+ "z"', 'root ::= "\\n"'):
        some, whole = GrammarMask(model, text, wanted=wanted), GrammarMask(model, text)
        for spread in (1.0, 8.0):
            logits = (random.standard_normal(model.vocabulary) * spread).astype(np.float32)
            expected = logits.copy()
            whole.mask(expected)
            some.mask(logits)
            found = best(logits, wanted)
            admitted = found[logits[found] > -np.inf]
            theirs = best(expected, wanted)
            assert admitted.tolist() == theirs[expected[theirs] > -np.inf].tolist()
            assert admitted.size > 0
        some.close()
        whole.close()


def test_a_mask_in_slices_is_the_mask(model: Model) -> None:
    logits = np.random.default_rng(3).standard_normal(model.vocabulary).astype(np.float32)
    expected, slices = logits.copy(), 0
    whole, sliced = GrammarMask(model, grammar(MANY)), GrammarMask(model, grammar(MANY), slice_s=0.0)
    whole.mask(expected)
    while True:
        given = logits.copy()
        try:
            sliced.mask(given)
            break
        except Unfinished:
            slices += 1
            assert (given == logits).all(), "nothing is told before all is known"
    assert slices > 2
    assert (given == expected).all()
    whole.close()
    sliced.close()


def test_a_grammar_is_given_up_before_its_readings_take_long(model: Model) -> None:
    """Left alone, a token took 7 s at the 13th bracket, and four times as long at each further one."""
    mask = GrammarMask(model, grammar(ALIKE), wanted=1)
    bracket = next(token for token in range(model.vocabulary) if model.piece(token) == b"[")
    taken = 0
    while mask.trouble is None and taken < 20:  # a fast machine gives up later
        assert mask.allows(bracket)
        mask.accept(bracket)
        taken += mask.trouble is None
    assert mask.trouble is not None
    assert "too many readings" in mask.trouble
    assert taken > 4, "a few of them cost nothing"
    mask.close()


def test_an_answer_with_too_many_readings_fails_alone(driver: Driver) -> None:
    slow, other = driver.run([shaped(ALIKE, max_tokens=60), chat("Hello.", max_tokens=8)])
    assert isinstance(slow.error, InvalidRequest)
    assert slow.error.param == "response_format"
    assert other.reason == "length"
