"""What the dispatcher is told of an HTTP request: whose it is, and what of it is kept in its record."""

from __future__ import annotations

import hashlib
import re
import uuid

from sanic import Request

from llmlb.router.call import Call, Direct
from llmlb.router.gateway.auth import principal_of

BODY_MAX = 64 * 1024
"""Bytes of a request's body that its record keeps."""
NO_RETRY = "x-llmlb-no-retry"
_BASE64 = re.compile(rb'("data"\s*:\s*")[A-Za-z0-9+/]{256,}={0,2}(?=")')
_DATA_URL = re.compile(rb'(data:[\w.+-]{1,80}/[\w.+-]{1,80}(?:;[\w=.+-]{1,80})*,)[^"\\\s]{64,}')


def inner_id(request: Request) -> str:
    """The id of the request on the bus: the one in ``x-request-id``, unless the client chose that (it may repeat)."""
    own: str = request.ctx.request_id
    return uuid.uuid4().hex if "x-request-id" in request.headers else own


def key_of(request: Request) -> str:
    """What fairness goes by: the id of the key or user that asks, else a digest of what was sent, or nothing."""
    principal = principal_of(request)
    if principal.key is not None:
        return principal.key.key_id
    if principal.user is not None:
        return principal.user.user_id
    given = request.headers.get("authorization") or request.headers.get("x-api-key")
    if given:
        return hashlib.sha256(given.encode()).hexdigest()[:12]
    return ""


def kept_body(body: bytes) -> str:
    """A body for the record: images cut out, at most BODY_MAX bytes."""
    if b"data:" in body:
        body = _DATA_URL.sub(lambda match: match[1] + b"(cut)", body)
    if b'"base64"' in body:
        body = _BASE64.sub(lambda match: match[1] + b"(cut)", body)
    return body[:BODY_MAX].decode(errors="replace")


def call_of(request: Request, *, streamed: bool, direct: Direct | None = None) -> Call:
    return Call(
        key=key_of(request),
        path=request.path,
        streamed=streamed,
        no_retry=request.headers.get(NO_RETRY, "") in ("1", "true"),
        bytes_in=len(request.body),
        body=kept_body(request.body),
        direct=direct,
    )
