"""The error answers of the OpenAPI document: one component a status, made from the maps of ``http_errors``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field

from llmlb.bus import errors
from llmlb.router.gateway import http_errors
from llmlb.router.gateway.openapi_entry import COMMON, PROTECTED, Entry

NO_ROUTE = frozenset({404, 405})
"""What Sanic answers where there is no operation."""
EVERYWHERE = frozenset(http_errors.SANIC) - NO_ROUTE
"""What Sanic may refuse on any route."""


class ErrorDetail(BaseModel):
    message: str = Field(description="what was wrong, in English, for people")
    type: str = Field(description="the kind of error, as OpenAI names it")
    param: str | None = Field(description="the field or parameter at fault, dotted")
    code: str | None = Field(description="what programs go by; see the statuses")


class Error(BaseModel):
    """The one error body, on every route but Anthropic's."""

    error: ErrorDetail


class AnthropicErrorDetail(BaseModel):
    type: str = Field(description="the kind of error, as Anthropic names it")
    message: str = Field(description="what was wrong, in English, for people")
    details: dict[str, Any] | None = Field(default=None, description="where `thread` is refused: what clients look for")


class AnthropicError(BaseModel):
    """The error body on the routes of Anthropic's API; as an event in a stream too."""

    type: str = Field(pattern="^error$")
    error: AnthropicErrorDetail
    request_id: str | None = Field(description="as in the header `request-id`")


def _texts() -> dict[str, str]:
    """What each class of error says, out of the tree in the docstring of :mod:`llmlb.bus.errors`."""
    tree = inspect.getdoc(errors) or ""
    return dict(re.findall(r"── (\w+) {2,}(\S.*)$", tree, re.MULTILINE))


def _codes(status: int, classes: Iterable[type[errors.LlmlbError]]) -> dict[str, str]:
    """The codes of a status, each with what it means; of these classes of errors, and of the HTTP server."""
    texts = _texts()
    mine = [cls for cls in classes if http_errors.answer_of(cls("")).status == status]
    found = {cls.reason: texts.get(cls.__name__, "") for cls in mine}
    if status in http_errors.SANIC:
        _, code, message = http_errors.SANIC[status]
        found.setdefault(code, message)
    return found


def responses(entry: Entry, *, public: bool, anthropic: bool) -> dict[str, Any]:
    """Every error that the route may answer, by status, with the codes it may have there."""
    given = (errors.InvalidRequest,) if entry.body is not None or entry.query is not None else ()
    classes = dict.fromkeys((*given, *entry.errors, *(() if public else PROTECTED), *COMMON))
    statuses = EVERYWHERE | {http_errors.answer_of(cls("")).status for cls in classes}
    return {
        str(status): {
            "$ref": f"#/components/responses/{name_of(status, anthropic=anthropic)}",
            "description": _description(status, _codes(status, classes), anthropic),
        }
        for status in sorted(statuses)
    }


def all_statuses() -> list[int]:
    """Every status of an error that a gateway may answer."""
    return sorted({one.status for one in http_errors.ANSWERS.values()} | set(http_errors.SANIC))


def name_of(status: int, *, anthropic: bool) -> str:
    """Of the component."""
    return f"{'Anthropic' if anthropic else 'Error'}{status}"


def components() -> dict[str, Any]:
    """Every error answer, in both shapes."""
    out = {}
    for anthropic in (False, True):
        for status in all_statuses():
            out[name_of(status, anthropic=anthropic)] = _component(status, anthropic)
    return out


def _component(status: int, anthropic: bool) -> dict[str, Any]:
    codes = _codes(status, http_errors.ANSWERS)
    schema = {"$ref": f"#/components/schemas/{'AnthropicError' if anthropic else 'Error'}"}
    return {
        "description": _description(status, codes, anthropic),
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _headers(status, anthropic)},
        "content": {"application/json": {"schema": schema, "example": _example(status, anthropic)}},
    }


def _description(status: int, codes: dict[str, str], anthropic: bool) -> str:
    """Anthropic's errors have no code, so only what it means is told."""
    kinds = f"`{http_errors.anthropic_type(status)}`" if anthropic else _types(status)
    texts = [text or code for code, text in codes.items()] if anthropic else _lines(codes)
    return f"{kinds}\n\n" + "\n".join(f"- {text}" for text in dict.fromkeys(texts))


def _lines(codes: dict[str, str]) -> list[str]:
    return [f"`{code}`" + (f": {text}" if text else "") for code, text in codes.items()]


def _types(status: int) -> str:
    kinds = {one.type for one in http_errors.ANSWERS.values() if one.status == status}
    if status in http_errors.SANIC:
        kinds.add(http_errors.SANIC[status][0])
    return ", ".join(f"`{kind}`" for kind in sorted(kinds))


def _headers(status: int, anthropic: bool) -> Iterable[str]:
    yield "x-request-id"
    if anthropic:
        yield "request-id"
    if status == 401:
        yield "WWW-Authenticate"
    if any(one.retry_after_s is not None for one in http_errors.ANSWERS.values() if one.status == status):
        yield "Retry-After"


def _example(status: int, anthropic: bool) -> dict[str, Any]:
    code, text = next(iter(_codes(status, http_errors.ANSWERS).items()))
    kind = next((one.type for one in http_errors.ANSWERS.values() if one.status == status), None)
    kind = kind or http_errors.SANIC[status][0]
    body = {"error": {"message": text or code, "type": kind, "param": None, "code": code}}
    return http_errors.anthropic_body(status, body, "4f1c0b5e9a") if anthropic else body
