"""Answers held against the OpenAPI document of the gateway that gave them."""

from __future__ import annotations

from functools import cache
from typing import Any

import jsonschema_rs
import orjson

from llmlb.router.gateway import openapi

_documents: dict[str, dict[str, Any]] = {}


def document_of(app: Any) -> dict[str, Any]:
    """Made once a process and role; with a ``strict`` copy of its schemas, which know no other fields."""
    role = app.ctx.gateway.role
    if role not in _documents:
        document = openapi.document(app)
        document["components"]["strict"] = _strict(document["components"]["schemas"])
        _documents[role] = document
    return _documents[role]


def _strict(value: Any) -> Any:
    """The same schemas, but that an object has only the fields that are named."""
    if isinstance(value, list):
        return [_strict(one) for one in value]
    if not isinstance(value, dict):
        return value
    out = {name: _strict(one) for name, one in value.items()}
    if isinstance(out.get("$ref"), str):
        out["$ref"] = out["$ref"].replace("/schemas/", "/strict/")
    if "properties" in out and out.get("type") == "object":
        out.setdefault("additionalProperties", False)
    return out


@cache
def _validator(role: str, schema: str) -> Any:
    whole = {**orjson.loads(schema), "components": _documents[role]["components"]}
    return jsonschema_rs.validator_for(whole)


def problems(app: Any, schema: dict[str, Any], value: Any, *, strict: bool) -> list[str]:
    """What is wrong with a value, at most three of it. ``strict``: fields that the schema lacks are wrong."""
    document_of(app)
    text = orjson.dumps(_strict(schema) if strict else schema).decode()
    found = list(_validator(app.ctx.gateway.role, text).iter_errors(value))
    return [f"{'.'.join(map(str, error.instance_path))}: {error.message}"[:300] for error in found[:3]]


class Documented:
    """Collects what is not as documented."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def note(self, request: Any, response: Any) -> None:
        """One answer, before the middleware for answers has seen it."""
        route = request.route
        gone = request.transport is None or request.transport.is_closing()
        if gone or route is None or request.method in openapi.HIDDEN or response is None:
            return
        where = f"{request.method} /{route.path} {response.status}"
        document = document_of(request.app)
        path = "/" + openapi._PARAMETER.sub(r"{\1}", route.path)
        known = document["paths"][path][request.method.lower()]["responses"].get(str(response.status))
        if known is None:
            self.wrong.append(f"{where}: no such status")
            return
        if "$ref" in known:
            known = document["components"]["responses"][known["$ref"].rpartition("/")[2]]
        media = (response.content_type or "").partition(";")[0]
        content = {name.partition(";")[0]: one for name, one in known.get("content", {}).items()}
        if media not in content:
            self.wrong.append(f"{where}: no such media type: {media}")
        elif media == "application/json" and getattr(response, "body", None):
            body = orjson.loads(response.body)
            found = problems(request.app, content[media]["schema"], body, strict=response.status < 400)
            self.wrong += [f"{where}: {one}" for one in found]
