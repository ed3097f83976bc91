"""Schemas of the OpenAPI document: pydantic models as components, with the names of their classes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from llmlb.bus.messages.base import Part
from llmlb.router.gateway.openapi_entry import Entry
from llmlb.router.gateway.openapi_errors import AnthropicError, Error
from llmlb.router.gateway.openapi_openai import StreamFailed

SWITCHING = 101
TEMPLATE = "#/components/schemas/{model}"
Input = tuple[Any, JsonSchemaMode, TypeAdapter[Any]]


class Schemas:
    """The schemas of all these entries."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._types: dict[Any, TypeAdapter[Any]] = {}
        for type_ in (Error, AnthropicError, *_types(entries)):
            self._types.setdefault(type_, TypeAdapter(type_))
        inputs: list[Input] = [(type_, "validation", adapter) for type_, adapter in self._types.items()]
        made, definitions = TypeAdapter.json_schemas(inputs, ref_template=TEMPLATE)
        self._schemas = {type_: schema for (type_, _), schema in made.items()}
        self._components: dict[str, Any] = definitions.get("$defs", {})
        parts = set(_names(Part))
        for name, schema in self._components.items():
            _untitled(schema)
            if name in parts:
                # What crosses the bus is written with all its fields; models of the document say which may be missing.
                schema["required"] = list(schema.get("properties", ()))

    def components(self) -> dict[str, Any]:
        return dict(sorted(self._components.items()))

    def of(self, type_: Any) -> dict[str, Any]:
        """The schema of one of the types, as a reference where it has a name."""
        return dict(self._schemas[type_])

    def media(self, type_: Any) -> dict[str, Any]:
        """A media type object for JSON."""
        return {"schema": self.of(type_)}

    def query(self, entry: Entry) -> list[dict[str, Any]]:
        """The parameters of the query string."""
        if entry.query is None:
            return []
        whole = entry.query.model_json_schema(ref_template=TEMPLATE)
        parameters = []
        for name, schema in whole["properties"].items():
            text = schema.pop("description", "")
            _untitled(schema)
            kinds = [one for one in schema.pop("anyOf", []) if one != {"type": "null"}]
            schema = {**schema, **kinds[0]} if kinds else schema
            if schema.get("default", 0) is None:
                del schema["default"]
            needed = name in whole.get("required", ())
            parameters.append({"name": name, "in": "query", "required": needed, "description": text, "schema": schema})
        return parameters

    def content(self, entry: Entry) -> dict[str, Any]:
        """What the body of the answer may be, by media type."""
        out: dict[str, Any] = {}
        if entry.answer is not None:
            out["application/json"] = self.media(entry.answer)
        if entry.events is not None:
            kinds = get_args(entry.events)
            out["text/event-stream"] = {"schema": _event([self.of(one) for one in kinds], ends=StreamFailed in kinds)}
        for media in entry.media:
            out[media] = {"schema": {"type": "string"}}
        return out

    def about(self, entry: Entry) -> str:
        """A sentence on the answer: the first one of its type's docstring."""
        if entry.status == SWITCHING:
            return "The connection is a WebSocket from now on."
        text = inspect.cleandoc(getattr(entry.answer, "__doc__", None) or "") if _is_model(entry.answer) else ""
        text = text.split("\n\n")[0].split("→ caller:")[-1].strip()
        about = text[:1].upper() + text[1:] if text else "Done."
        return f"{about} A stream of events with `stream: true`." if entry.events is not None else about


def _event(payloads: list[dict[str, Any]], *, ends: bool) -> dict[str, Any]:
    """One event of a stream, as in itemSchema of OpenAPI 3.2. 3.1 has no word for the events; tools look here.

    ``ends``: the last one is ``[DONE]``, which is no JSON.
    """
    told = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": payloads}}
    data = {"anyOf": [told, {"const": "[DONE]"}]} if ends else told
    return {
        "type": "object",
        "description": "one server-sent event",
        "required": ["data"],
        "properties": {"event": {"type": "string"}, "data": data},
    }


def _is_model(type_: Any) -> bool:
    return inspect.isclass(type_) and issubclass(type_, BaseModel)


def _types(entries: Iterable[Entry]) -> Iterator[Any]:
    for entry in entries:
        yield from (one for one in (entry.body, entry.answer) if one is not None)
        yield from get_args(entry.events)


def _names(root: type[Part]) -> Iterator[str]:
    for one in root.__subclasses__():
        yield one.__name__
        yield from _names(one)


def _untitled(schema: dict[str, Any]) -> None:
    """Takes away the titles that pydantic makes of names: they say nothing more."""
    schema.pop("title", None)
    for one in schema.get("properties", {}).values():
        one.pop("title", None)
