"""The OpenAPI 3.1 document of a gateway, made from the routes that its application has.

To document a new route:

1. Its handler has a docstring. The first line is the title, what follows is the description.
2. ``openapi_routes.ENTRIES`` has a line ``"<blueprint>.<handler>": Entry("<tag>", <answer>, <body>, <errors>)``. The
   answer and the body are pydantic models whose fields have descriptions; the errors are one of the groups of
   ``openapi_entry``, or classes of :mod:`llmlb.bus.errors`: their statuses and texts follow from those. ``status``,
   ``query``, ``events`` and ``media`` are there for what differs.

Then ``make docs``. Credentials come from ``permissions.RULES``, path parameters from the path, what is common to all
(the request's id, errors of the HTTP server, rate limits) by itself. A path that answers something else than HTTP, such
as a WebSocket, has ``status=101`` and no answer.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sanic import Sanic

from llmlb.router.gateway import openapi_headers as headers
from llmlb.router.gateway.openapi_entry import TAGS, UNDOCUMENTED, Entry
from llmlb.router.gateway.openapi_errors import components as error_components
from llmlb.router.gateway.openapi_errors import responses as error_responses
from llmlb.router.gateway.openapi_routes import ENTRIES
from llmlb.router.gateway.openapi_schemas import Schemas
from llmlb.router.gateway.permissions import ADMINS, RULES, Rule

VERSION = "3.1.0"
HIDDEN = frozenset({"HEAD", "OPTIONS"})
"""Methods that say of others what those do."""
_PARAMETER = re.compile(r"<(\w+)(?::(\w+))?>")
_INFO = """\
Every gateway, a router's and each node's own, speaks OpenAI's and Anthropic's API, and has routes of its own below
`/v0`. Fields of requests that are unknown are ignored on `/v1` and refused on `/v0`.

Whoever asks from another machine shows an API key or a session. A program on the gateway's own machine needs neither
until the first user exists.

An answer that is streamed is `text/event-stream`; comments in it (lines that begin with `:`) are signs of life. What
fails after it has begun is an event.
"""
_PATHS = {
    "model": "name of the model; `/` and `:` in it may stand as they are, or percent-encoded",
    "node": "node id, or a beginning of it that no other node has",
    "task": "id of the task, or the model's name as it was pulled",
    "request_id": "the `x-request-id` of a request",
    "response_id": "id of a stored response",
    "name": "name of the user",
    "key": "id of the key, its beginning (4 characters at least), or its name",
}
"""What the parameters of paths are, by name."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route."""

    name: str
    """``<blueprint>.<handler>``."""
    path: str
    """As Sanic has it, without the leading slash."""
    method: str
    handler: Callable[..., Any]

    @property
    def rule(self) -> Rule:
        return RULES.get((self.method, self.path), ADMINS)

    @property
    def entry(self) -> Entry:
        return ENTRIES.get(self.name, UNDOCUMENTED)


def operations(app: Sanic[Any, Any]) -> Iterator[Operation]:
    """Every operation of the application, in the order of their paths."""
    for route in sorted(app.router.routes, key=lambda route: (str(route.path), sorted(route.methods))):
        for method in sorted(set(route.methods) - HIDDEN):
            # Sanic wraps the handler of a WebSocket.
            handler = route.handler.args[0] if isinstance(route.handler, functools.partial) else route.handler
            yield Operation(str(route.name).split(".", 1)[1], str(route.path), str(method), handler)


def document(app: Sanic[Any, Any]) -> dict[str, Any]:
    """The document of this application's routes."""
    gateway = app.ctx.gateway
    schemas = Schemas(ENTRIES.values())
    paths: dict[str, dict[str, Any]] = {}
    found = list(operations(app))
    for one in found:
        at = paths.setdefault("/" + _PARAMETER.sub(r"{\1}", one.path), {})
        at[one.method.lower()] = _operation(one, one.entry, schemas)
    used = {one.entry.tag for one in found}
    body = {
        "openapi": VERSION,
        "info": {"title": f"llmlb {gateway.role} gateway", "version": gateway.version, "description": _INFO},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items() if name in used],
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "responses": error_components(),
            "headers": headers.RESPONSE,
            "parameters": headers.REQUEST,
            "securitySchemes": headers.SECURITY_SCHEMES,
        },
    }
    return _without_unused(body)


def _operation(one: Operation, entry: Entry, schemas: Schemas) -> dict[str, Any]:
    words = inspect.cleandoc(one.handler.__doc__ or "").replace("``", "`")
    title, _, text = words.partition("\n")
    rule = one.rule
    operation: dict[str, Any] = {
        "operationId": one.name.replace(".", "_"),
        "tags": [entry.tag],
        "summary": title.removesuffix("."),
        "description": "\n\n".join(part for part in (text.strip(), _who(rule)) if part),
        "parameters": [*_path_parameters(one.path), *schemas.query(entry), *_header_parameters(entry, rule)],
        "responses": _responses(one, entry, schemas),
        "security": _security(one.method, rule),
    }
    if entry.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": schemas.media(entry.body)},
        }
    return operation


def _who(rule: Rule) -> str:
    if rule.public:
        return "Anybody may, without credentials."
    if rule.anyone:
        return "Whoever has valid credentials may."
    users = "admins and viewers" if rule.viewer else "admins"
    return f"Who may: {users}, and API keys with the permission `{rule.permission}`."


def _security(method: str, rule: Rule) -> list[dict[str, list[str]]]:
    if rule.public:
        return []
    return headers.READS if method == "GET" else headers.CHANGES


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATHS.get(name, ""),
            "schema": {"type": "string", "minLength": 1},
        }
        for name, _ in _PARAMETER.findall(path)
    ]


def _header_parameters(entry: Entry, rule: Rule) -> list[dict[str, str]]:
    names = ["RequestId"]
    if rule.permission == "inference" and entry.body is not None:
        names.append("NoRetry")
    if entry.tag == "Anthropic" or "request-id" in entry.headers:
        names.append("AnthropicVersion")
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _responses(one: Operation, entry: Entry, schemas: Schemas) -> dict[str, Any]:
    anthropic = entry.tag == "Anthropic"
    names = ["x-request-id", *entry.headers]
    if anthropic:
        names.append("request-id")
    if one.rule.permission == "inference" and one.method == "POST":
        names += headers.RATE_LIMITS
    fine: dict[str, Any] = {
        "description": schemas.about(entry),
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }
    if content := schemas.content(entry):
        fine["content"] = content
    return {str(entry.status): fine, **error_responses(entry, public=one.rule.public, anthropic=anthropic)}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)


def _without_unused(body: dict[str, Any]) -> dict[str, Any]:
    """The document without components that no route leads to: a node's has not those of a router's routes."""
    components = body["components"]
    seen: set[str] = set()
    new = set(_references(body["paths"]))
    while new:
        seen |= new
        parts = [ref.removeprefix("#/components/").split("/", 1) for ref in new]
        new = {ref for kind, name in parts for ref in _references(components[kind][name])} - seen
    for kind, all_of in components.items():
        if kind != "securitySchemes":
            components[kind] = {name: one for name, one in all_of.items() if f"#/components/{kind}/{name}" in seen}
    return body
