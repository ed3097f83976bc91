"""Errors as HTTP: the only map from an error to status and body.

One body everywhere but on the routes of Anthropic's API: ``{"error": {"message", "type", "param", "code"}}``.
Source of the types: OpenAI's API reference, "Error codes"; ``code`` is the reason of the error in
:mod:`llmlb.bus.errors`.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

import orjson
from sanic import Request
from sanic.exceptions import MethodNotAllowed, SanicException
from sanic.response import HTTPResponse, empty, raw

from llmlb.bus import errors
from llmlb.router.gateway.http_head import HttpRefused
from llmlb.router.ids import new_id

log = logging.getLogger("llmlb.router.gateway.http_errors")

RETRY_SOON_S = 1
RETRY_LATER_S = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """How a class of errors looks over HTTP. ``retry_after_s`` None: no Retry-After."""

    status: int
    type: str
    retry_after_s: int | None = None


# The most derived class wins. tests/unit/gateway/test_http_errors.py walks llmlb.bus.errors.
ANSWERS: dict[type[errors.LlmlbError], Answer] = {
    errors.LlmlbError: Answer(500, "server_error"),
    errors.RequestError: Answer(400, "invalid_request_error"),
    errors.InvalidRequest: Answer(400, "invalid_request_error"),
    errors.ContextOverflow: Answer(400, "invalid_request_error"),
    errors.ModelUnknown: Answer(404, "not_found_error"),
    errors.NodeUnknown: Answer(404, "not_found_error"),
    errors.NotFound: Answer(404, "not_found_error"),
    errors.CapacityError: Answer(503, "server_error", RETRY_LATER_S),
    errors.NoCapableNode: Answer(503, "server_error", RETRY_LATER_S),
    errors.ModelDownloading: Answer(503, "server_error", RETRY_LATER_S),
    errors.QueueFull: Answer(429, "rate_limit_error", RETRY_SOON_S),
    errors.NodeBusy: Answer(429, "rate_limit_error", RETRY_SOON_S),
    errors.RateLimited: Answer(429, "rate_limit_error", RETRY_SOON_S),
    errors.HubUnavailable: Answer(503, "server_error", RETRY_LATER_S),
    errors.OutOfMemory: Answer(503, "server_error", RETRY_LATER_S),
    errors.OutOfDisk: Answer(503, "server_error", RETRY_LATER_S),
    errors.NodeError: Answer(500, "server_error"),
    errors.NodeLost: Answer(503, "server_error", RETRY_SOON_S),
    errors.EngineCrashed: Answer(500, "server_error"),
    errors.EngineStalled: Answer(504, "timeout_error"),
    errors.ModelLoadFailed: Answer(500, "server_error"),
    errors.PullFailed: Answer(500, "server_error"),
    errors.BusError: Answer(500, "server_error"),
    errors.BusDown: Answer(503, "server_error", RETRY_SOON_S),
    errors.BadMessage: Answer(500, "server_error"),
    errors.MessageTooLarge: Answer(413, "request_too_large"),
    errors.AccessError: Answer(403, "permission_error"),
    errors.Unauthenticated: Answer(401, "authentication_error"),
    errors.Forbidden: Answer(403, "permission_error"),
    errors.DeadlineExceeded: Answer(504, "timeout_error"),
    errors.Cancelled: Answer(499, "cancelled"),
    errors.Conflict: Answer(409, "conflict_error"),
    errors.HistoryDown: Answer(503, "server_error", RETRY_LATER_S),
    errors.ConfigError: Answer(500, "server_error"),
}

# What Sanic itself refuses, before any handler of ours.
SANIC: dict[int, tuple[str, str, str]] = {
    400: ("invalid_request_error", "invalid_request", "the request is not valid HTTP"),
    404: ("not_found_error", "not_found", "there is nothing at this address"),
    405: ("invalid_request_error", "method_not_allowed", "this address does not take this method"),
    408: ("timeout_error", "request_timeout", "the request did not arrive in time"),
    413: ("request_too_large", "request_too_large", "the request body is too large"),
    414: ("invalid_request_error", "address_too_long", "the address is too long"),
    417: ("invalid_request_error", "expectation_failed", "the Expect header can't be met"),
    431: ("invalid_request_error", "headers_too_large", "the request headers are too large"),
    501: ("invalid_request_error", "not_implemented", "this is not understood here"),
    503: ("server_error", "unavailable", "the server can't answer at the moment"),
    505: ("invalid_request_error", "http_version_not_supported", "this version of HTTP is not spoken here"),
}


def answer_of(error: errors.LlmlbError) -> Answer:
    """The entry for an error's class, or its nearest base's."""
    return next(ANSWERS[cls] for cls in type(error).__mro__ if cls in ANSWERS)


def body_of(error: errors.LlmlbError) -> dict[str, Any]:
    """The body, as data."""
    return {
        "error": {
            "message": error.message,
            "type": answer_of(error).type,
            "param": error.param,
            "code": error.reason,
        }
    }


# Anthropic's types, by status. Source: Anthropic's API reference, "Errors".
_ANTHROPIC: dict[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_type(status: int) -> str:
    """The type of an error with this status, on the routes of Anthropic's API."""
    return _ANTHROPIC.get(status) or ("invalid_request_error" if 400 <= status < 499 else "api_error")


def speaks_anthropic(request: Request | None) -> bool:
    """True for the routes whose clients expect Anthropic's errors and headers."""
    return request is not None and (request.path == "/v1/messages" or request.path.startswith("/v1/messages/"))


def id_headers(request: Request) -> dict[str, str]:
    """The request's id as the client of its route looks for it."""
    # A request that Sanic refused before our middleware has none yet.
    request.ctx.request_id = getattr(request.ctx, "request_id", None) or new_id()
    headers = {"x-request-id": request.ctx.request_id}
    if speaks_anthropic(request):
        headers["request-id"] = request.ctx.request_id
    return headers


# What a client goes on from by itself, by the field at fault. A tool runner whose thread is refused in these words
# sends all turns from then on. Source: the anthropic package, lib/threads.
_ANTHROPIC_DETAILS: dict[str, dict[str, Any]] = {
    "thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
}


def anthropic_body(status: int, body: dict[str, Any], request_id: str | None) -> dict[str, Any]:
    """Our body in Anthropic's shape; the field at fault is named in the text."""
    error = body["error"]
    message, param = error["message"], error["param"]
    if param and not message.startswith(param):
        message = f"{param}: {message}"
    shown: dict[str, Any] = {"type": anthropic_type(status), "message": message}
    if param in _ANTHROPIC_DETAILS:
        shown["details"] = _ANTHROPIC_DETAILS[param]
    return {"type": "error", "error": shown, "request_id": request_id}


def _response(
    status: int, body: dict[str, Any], headers: dict[str, str] | None = None, request: Request | None = None
) -> HTTPResponse:
    if request is not None and speaks_anthropic(request):
        body = anthropic_body(status, body, id_headers(request)["request-id"])
    return raw(orjson.dumps(body), status=status, headers=headers, content_type="application/json")


def to_response(error: errors.LlmlbError, request: Request | None = None) -> HTTPResponse:
    """The HTTP answer to an error, in the shape that the route's clients expect."""
    answer = answer_of(error)
    # These know when there is room again.
    retry_after_s = answer.retry_after_s
    if isinstance(error, errors.QueueFull | errors.RateLimited | errors.ModelDownloading | errors.HubUnavailable):
        retry_after_s = error.retry_after_s
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110: a 401 says what it wants
    return _response(answer.status, body_of(error), headers, request)


_EVERYWHERE = "DELETE, GET, HEAD, OPTIONS, POST, PUT"


def _methods(request: Request) -> str:
    """What an address takes. HEAD goes where GET does, and OPTIONS everywhere.

    Asked one by one: where several routes share an address, Sanic does not say.
    """
    methods = {"OPTIONS"}
    for method in ("DELETE", "GET", "PATCH", "POST", "PUT"):
        with contextlib.suppress(SanicException):
            request.app.router.get(request.path, method, None)
            methods |= {"GET", "HEAD"} if method == "GET" else {method}
    return ", ".join(sorted(methods))


def handle_exception(request: Request | None, error: Exception) -> HTTPResponse:
    """Sanic's error handler: any exception to an answer. Only what nobody expected is logged, with its traceback."""
    if isinstance(error, errors.LlmlbError):
        if answer_of(error).status >= 500:
            log.warning("request_failed reason=%s error=%r detail=%s", error.reason, error.message, error.detail)
        return to_response(error, request)
    if request is not None and request.method == "OPTIONS" and request.path == "*":
        return empty(headers={"allow": _EVERYWHERE})
    if isinstance(error, MethodNotAllowed) and request is not None:
        methods = _methods(request)
        if request.method == "OPTIONS":
            return empty(headers={"allow": methods})
        error.headers = {"allow": methods}
    if isinstance(error, SanicException):
        status = error.status_code
        kind, code, message = SANIC.get(status, ("invalid_request_error", "invalid_request", str(error)))
        if isinstance(error, HttpRefused):
            message = error.text
        headers = {str(k): str(v) for k, v in (error.headers or {}).items()}
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        return _response(status, body, headers, request)
    log.error("unexpected_error path=%s", None if request is None else request.path, exc_info=error)
    return to_response(errors.LlmlbError("internal error"), request)
