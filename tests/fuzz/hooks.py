"""What schemathesis is told of this API: it runs in a process of its own, which imports this (SCHEMATHESIS_HOOKS)."""

from __future__ import annotations

from typing import Any

import schemathesis

from tests.fuzz import checks as checks  # importing registers them

MODEL = "smollm2"
MODEL_EACH = 8
"""One request of so many goes to the model, and takes 50 ms: which one, its size says. The examples all do."""
TOKENS_MAX = 3
CHOICES_MAX = 2
BODY_MAX = 2_000
"""Characters of a body that the model is given: a conversation of 16,000 turns takes it a minute."""
NO_MODEL = "nobody/has-this"
NO_NODE = "0" * 32
MAX_MODEL_NAME = 256
"""Not imported: Hypothesis draws from the constants of every module of ours that it finds loaded."""
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Little is asked of the model, few requests are for it, and no node is hit by chance."""
    if case.path_parameters and len(str(case.path_parameters.get("node", NO_NODE))) < 8:
        case.path_parameters["node"] = NO_NODE
    body = case.body
    if case.operation.path.startswith("/v1/") and isinstance(body, dict) and isinstance(body.get("model"), str):
        example = case.meta is not None and case.meta.phase.name.value == "examples"
        case.body = bounded(body, example=example, limit=not case.operation.path.startswith("/v1/messages"))


def bounded(body: dict[str, Any], *, example: bool, limit: bool) -> dict[str, Any]:
    """What is wrong, or missing, stays so. ``example``: one of the document's own; ``limit``: may be put in."""
    body = dict(body)
    size = len(str(body))
    if 0 < len(body["model"]) <= MAX_MODEL_NAME and not (example and size <= BODY_MAX):
        body["model"] = NO_MODEL if size > BODY_MAX or size % MODEL_EACH else MODEL
    for name in LIMITS:
        if _is_number(body.get(name)) and body[name] > TOKENS_MAX and body[name] < 2**31:
            body[name] = TOKENS_MAX
    if limit and all(body.get(name) is None for name in LIMITS):
        body["max_output_tokens" if "input" in body else "max_tokens"] = TOKENS_MAX
    if _is_number(body.get("n")) and CHOICES_MAX < body["n"] <= 128:
        body["n"] = CHOICES_MAX
    return body


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
