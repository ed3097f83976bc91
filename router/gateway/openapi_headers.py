"""Headers of requests and answers, and the ways to show who one is, for the OpenAPI document. Pure data."""

from __future__ import annotations

from typing import Any

from llmlb.router.gateway.auth import CSRF_COOKIE, CSRF_HEADER, SESSION_COOKIE
from llmlb.router.gateway.calls import NO_RETRY

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "string", "pattern": "^[0-9]+$"}


def _header(description: str, schema: Schema = _TEXT) -> dict[str, Any]:
    return {"description": description, "schema": schema}


RESPONSE: dict[str, dict[str, Any]] = {
    "x-request-id": _header("The request's id: the one that was sent, or a new one. Errors are reported with it."),
    "request-id": _header("As `x-request-id`, under the name that Anthropic's clients look for."),
    "Retry-After": _header("Seconds after which it is worth another try.", _COUNT),
    "WWW-Authenticate": _header("`Bearer`: what the gateway wants."),
    "Set-Cookie": _header(f"`{SESSION_COOKIE}` (HttpOnly) and `{CSRF_COOKIE}`, both SameSite=Strict."),
    "x-ratelimit-limit-requests": _header("Requests a minute that the API key may make, where it has that limit."),
    "x-ratelimit-remaining-requests": _header("How many of them are left now."),
    "x-ratelimit-reset-requests": _header("When all of them are there again, such as `1.500s`."),
    "x-ratelimit-limit-tokens": _header("Tokens a minute that the API key may use, where it has that limit."),
    "x-ratelimit-remaining-tokens": _header("How many of them are left now."),
    "x-ratelimit-reset-tokens": _header("When all of them are there again, such as `1.500s`."),
}
RATE_LIMITS = tuple(name for name in RESPONSE if name.startswith("x-ratelimit-"))

REQUEST: dict[str, dict[str, Any]] = {
    "RequestId": {
        "name": "x-request-id",
        "in": "header",
        "description": "An id of yours, `[A-Za-z0-9._-]{1,128}`; anything else is replaced by a new one.",
        "schema": _TEXT,
    },
    "NoRetry": {
        "name": NO_RETRY,
        "in": "header",
        "description": "`1`: one node is asked, and its failure is told as it is.",
        "schema": _TEXT,
    },
    "AnthropicVersion": {
        "name": "anthropic-version",
        "in": "header",
        "description": "Any: there is one version. Where OpenAI's clients ask too, it asks for Anthropic's shape.",
        "schema": _TEXT,
    },
}
"""Components, by the name they are referred to."""

SECURITY_SCHEMES: dict[str, dict[str, Any]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "sk_…",
        "description": "An API key, as OpenAI's clients send it: `Authorization: Bearer sk_…`.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "An API key, as Anthropic's clients send it.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "The session of a login. Whatever changes something needs the CSRF token too.",
    },
    "csrf": {
        "type": "apiKey",
        "in": "header",
        "name": CSRF_HEADER,
        "description": f"The value of the cookie `{CSRF_COOKIE}`, or `csrf_token` of `/v0/auth/me`.",
    },
}

Security = list[dict[str, list[str]]]
READS: Security = [{"bearer": []}, {"apiKey": []}, {"session": []}]
CHANGES: Security = [{"bearer": []}, {"apiKey": []}, {"session": [], "csrf": []}]
