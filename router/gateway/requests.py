"""/v0/requests of a router: the requests of the last days, newest first, and one of them with all that is known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import HistoryDown, InvalidRequest, NotFound
from llmlb.router.gateway.ports import History
from llmlb.router.history_query import LIMIT_MAX, RequestFilter

routes = Blueprint("requests", url_prefix="/v0")

TEXT_MAX = 1024
_NODE = re.compile(r"[0-9a-f]{1,32}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{0,400})?([eE][+-]?[0-9]{1,4})?")


def _text(value: str) -> str:
    if not 0 < len(value) <= TEXT_MAX:
        raise ValueError(f"1 to {TEXT_MAX} characters")
    return value


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return value

    return parse


def _node(value: str) -> str:
    if not _NODE.fullmatch(value.lower()):
        raise ValueError("a node id, or the beginning of one")
    return value.lower()


def _number(value: str) -> float:
    if not _NUMBER.fullmatch(value):  # float() takes blanks, underscores and other scripts' digits too
        raise ValueError(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _moment(value: str) -> float:
    try:
        return _number(value)
    except ValueError:
        pass
    try:
        # A plus in a query string arrives as a space.
        moment = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("Unix seconds, or a time like 2026-01-31T12:00:00Z") from None


def _duration(value: str) -> float:
    try:
        number = _number(value)
    except ValueError:
        number = -1.0
    if number < 0:
        raise ValueError("a number of milliseconds, 0 or more")
    return number


def _limit(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", value) or not 1 <= int(value) <= LIMIT_MAX:
        raise ValueError(f"a number from 1 to {LIMIT_MAX}")
    return int(value)


def _cursor(value: str) -> tuple[float, str]:
    moment, separator, request_id = value.partition("~")
    try:
        if separator and request_id:
            return _number(moment), request_id
    except ValueError:
        pass
    raise ValueError("what an earlier answer gave as next")


PARAMETERS: dict[str, Callable[[str], Any]] = {
    "model": _text,
    "node": _node,
    "status": _one_of("ok", "error", "cancelled"),
    "reason": _text,
    "key": _text,
    "kind": _one_of("chat", "completion", "embedding"),
    "path": _text,
    "since": _moment,
    "until": _moment,
    "min_ms": _duration,
    "max_ms": _duration,
    "search": _text,
    "before": _cursor,
    "limit": _limit,
}


def parse_filter(given: dict[str, list[str]]) -> RequestFilter:
    """The filter of a query string. Raises InvalidRequest naming the parameter."""
    fields: dict[str, Any] = {}
    for name, values in given.items():
        parse = PARAMETERS.get(name)
        if parse is None:
            raise InvalidRequest(f"unknown parameter; there are {', '.join(PARAMETERS)}", param=name[:64])
        if len(values) != 1:
            raise InvalidRequest(f"{name} may be given once", param=name)
        try:
            fields[name] = parse(values[0])
        except ValueError as error:
            raise InvalidRequest(f"{name} must be {error}", param=name) from None
    return RequestFilter(**fields)


def _history(request: Request) -> History:
    history: History | None = request.app.ctx.gateway.history
    if history is None:
        raise HistoryDown("this gateway has no request history")
    return history


def _json(body: object) -> HTTPResponse:
    return raw(orjson.dumps(body), content_type="application/json")


@routes.get("/requests")
async def requests(request: Request) -> HTTPResponse:
    """Past requests, newest first.

    Those of the last 7 days, without what was said.
    """
    wanted = parse_filter(dict(request.get_args(keep_blank_values=True)))
    rows, more = await _history(request).find(wanted)
    cursor = f"{rows[-1]['started_at']!r}~{rows[-1]['request_id']}" if more and rows else None
    return _json({"requests": rows, "next": cursor})


@routes.get("/requests/<request_id:str>")
async def one(request: Request, request_id: str) -> HTTPResponse:
    """One past request, with what was said.

    Images are cut out, and texts end after 64 KiB.
    """
    found = await _history(request).get(request_id)
    if found is None:
        raise NotFound(f"no request has the id '{request_id[:128]}'", param="request_id")
    return _json(found)
