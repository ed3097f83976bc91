"""Bodies with one value replaced by another kind of value: refused by name or taken, and taken only as documented.

Every place of a body that has all fields is given every kind of value. It is what schemathesis does by chance
(tests/fuzz), without the chance.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import BaseModel

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.gateway.anthropic_schema import CountRequest
from llmlb.router.gateway.openai_embeddings_schema import EmbeddingRequest
from llmlb.router.gateway.openai_responses_items import items_of
from llmlb.router.gateway.openai_responses_schema import CountBody, ResponsesRequest
from llmlb.router.gateway.openai_responses_stored import as_bytes
from llmlb.router.gateway.openai_schema import ChatRequest, CompletionRequest, parse
from llmlb.router.gateway.openapi_routes import ENTRIES
from llmlb.router.gateway.openapi_schemas import Schemas

BODY_CLASSES: set[type[BaseModel]] = {entry.body for entry in ENTRIES.values() if entry.body is not None}
FULL: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "full_bodies.json").read_text())
"""For each class of bodies (module and name) some that have all its fields."""


def name_of(cls: type[BaseModel]) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


BODIES = [(cls, body) for cls in sorted(BODY_CLASSES, key=name_of) for body in FULL.get(name_of(cls), ())]
OTHERS: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, 1.5, 2**31, 2**63, 2**64, 1e308, 5e-324, "", "1", "1.0", "true", "auto", "\0"),
    *([], [[]], [None], ["1"], [1], [{}], {}, {"type": []}, {"type": {}}, {"type": None}, {"a": [1]}, "x" * 300),
]


@cache
def schemas() -> tuple[Schemas, dict[str, Any]]:
    made = Schemas(ENTRIES.values())
    return made, made.components()


@cache
def documented(cls: type[BaseModel]) -> Any:
    made, components = schemas()
    return jsonschema_rs.validator_for({**made.of(cls), "components": {"schemas": components}})


def take(cls: type[BaseModel], body: bytes) -> InferRequest | None:
    """All that a route does with a body before it asks anybody. Raises InvalidRequest."""
    parsed: Any = parse(cls, body)
    if isinstance(parsed, CompletionRequest):
        parsed.prompts()
    if isinstance(parsed, ResponsesRequest):
        parsed.check()
        as_bytes(parsed.head(), "tools")
    if isinstance(parsed, CountBody):
        items = items_of(parsed.input)
        as_bytes(items, "input")
        made, _ = parsed.request("r", [], items)
    elif isinstance(parsed, ChatRequest | CountRequest):
        made, _ = parsed.request("r")
    elif isinstance(parsed, CompletionRequest | EmbeddingRequest):
        made = parsed.request("r")
    else:
        return None
    # As the bus has it: a node does not refuse it later.
    return InferRequest.model_validate_json(made.model_dump_json())


Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place of a body, the innermost ones first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))
    yield at


def replaced(body: dict[str, Any], place: Place, edit: Callable[[Any, Any], None]) -> Any:
    """A copy, after ``edit`` of the container of this place, by key."""
    root = [copy.deepcopy(body)]
    at: Any = root
    for key in (0, *place)[:-1]:
        at = at[key]
    edit(at, (0, *place)[-1])
    return root[0]


def variants(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(what is other, the body) for each place and kind of value; and without each place."""
    for place in places(body):
        where = ".".join(map(str, place))
        for other in OTHERS:

            def put(at: Any, key: Any, other: Any = other) -> None:
                at[key] = copy.deepcopy(other)

            yield f"{where} = {json.dumps(other)[:40]}", replaced(body, place, put)
        if place:
            yield f"without {where}", replaced(body, place, lambda at, key: at.pop(key))


@pytest.mark.parametrize(("cls", "body"), BODIES, ids=[f"{name_of(cls)}-{at}" for at, (cls, _) in enumerate(BODIES)])
def test_what_the_document_forbids_is_refused_and_nothing_breaks(cls: type[BaseModel], body: dict[str, Any]) -> None:
    take(cls, json.dumps(body).encode())
    documented(cls).validate(body)
    wrong = []
    for what, other in variants(body):
        try:
            take(cls, json.dumps(other).encode())
        except InvalidRequest:
            continue
        except Exception as error:  # noqa: BLE001 - it is what this test looks for
            wrong.append(f"{what}: {error!r}"[:300])
            continue
        found = [error.message for error in documented(cls).iter_errors(other)]
        if found:
            wrong.append(f"{what}: taken, but: {found[0]}"[:300])
    assert not wrong, "\n".join(wrong[:40])


def test_every_body_of_the_document_is_among_them_with_all_its_fields() -> None:
    assert {name_of(cls) for cls in BODY_CLASSES} == set(FULL)
    # Any: whatever it is, it is refused.
    refused = {"audio", "prediction", "conversation", "prompt", "container", "thread", "compaction"}
    refused |= {"function_call", "web_search_options", "moderation"}
    for cls in BODY_CLASSES:
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        missing = fields - {name for body in FULL[name_of(cls)] for name in body} - refused
        assert not missing, name_of(cls)
