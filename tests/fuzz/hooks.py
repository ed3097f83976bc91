"""What schemathesis is told of this API: it runs in a process of its own, which imports this (SCHEMATHESIS_HOOKS)."""

from __future__ import annotations

from typing import Any

import schemathesis

from tests.fuzz import checks as checks  # importing registers them

MODEL = "smollm2"
TOKENS_MAX = 4
CHOICES_MAX = 2
BODY_MAX = 20_000
"""Characters of a body that the model is given: a conversation of 16,000 turns takes it a minute."""
NO_MODEL = "nobody/has-this"
NO_NODE = "0" * 32
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Little is asked of the model, every other request is for one that there is, and no node is hit by chance."""
    if case.path_parameters and len(str(case.path_parameters.get("node", NO_NODE))) < 8:
        case.path_parameters["node"] = NO_NODE
    body = case.body
    if case.operation.path.startswith("/v1/") and isinstance(body, dict) and isinstance(body.get("model"), str):
        case.body = bounded(body)


def bounded(body: dict[str, Any]) -> dict[str, Any]:
    """Values that are wrong stay so."""
    body = dict(body)
    size = len(str(body))
    if size > BODY_MAX:
        body["model"] = NO_MODEL
    elif size % 2 == 0 and body["model"]:
        body["model"] = MODEL
    for name in LIMITS:
        if _is_number(body.get(name)) and body[name] > TOKENS_MAX and body[name] < 2**31:
            body[name] = TOKENS_MAX
    if not any(body.get(name) for name in LIMITS):
        body["max_output_tokens" if "input" in body else "max_tokens"] = TOKENS_MAX
    if _is_number(body.get("n")) and CHOICES_MAX < body["n"] <= 128:
        body["n"] = CHOICES_MAX
    return body


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
