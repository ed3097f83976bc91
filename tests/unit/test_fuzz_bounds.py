"""What `make fuzz` changes of its requests: what is wrong with one stays wrong, or a right refusal were called for."""

from __future__ import annotations

from typing import Any

import pytest

from llmlb.router.gateway import openai_schema
from tests.fuzz.hooks import BODY_MAX, MAX_MODEL_NAME, MODEL, NO_MODEL, TOKENS_MAX, bounded

NAMES = {MODEL, NO_MODEL}


def changed(limit: bool = True, **body: Any) -> dict[str, Any]:
    return bounded({"model": "any", **body}, example=False, limit=limit)


def test_the_longest_name_of_a_model_is_the_one_of_the_gateway() -> None:
    assert MAX_MODEL_NAME == openai_schema.MAX_MODEL_NAME


@pytest.mark.parametrize("model", ["", "x" * (MAX_MODEL_NAME + 1)])
def test_a_name_that_no_model_can_have_stays(model: str) -> None:
    assert all(changed(model=model, pad="x" * size)["model"] == model for size in range(40))


@pytest.mark.parametrize("value", [0, -1, "", "5", False, True, [], {}, 2**31, 1.5])
def test_a_limit_that_is_none_stays(value: Any) -> None:
    out = changed(max_tokens=value)
    assert out == {**out, "max_tokens": value}
    assert "max_output_tokens" not in out


def test_a_limit_that_must_be_given_is_not_put_in() -> None:
    assert "max_tokens" not in changed(limit=False)
    assert changed()["max_tokens"] == changed(max_tokens=None)["max_tokens"] == TOKENS_MAX
    assert changed(input="x")["max_output_tokens"] == TOKENS_MAX


def test_few_requests_are_for_the_model_and_no_large_one() -> None:
    asked = [changed(pad="x" * size)["model"] for size in range(400)]
    assert set(asked) == NAMES
    assert asked.count(MODEL) <= 50
    large = {"model": MODEL, "pad": "x" * (BODY_MAX + 50)}
    assert bounded(large, example=True, limit=True)["model"] == NO_MODEL
    assert bounded({"model": MODEL, "pad": ""}, example=True, limit=True)["model"] == MODEL
