"""What the dispatcher is told of an HTTP request: whose it is, and what of it is kept in its record."""

from __future__ import annotations

import functools
import hashlib

from sanic import Request

from llmlb.bus.messages.infer import InferRequest, WrittenMessages
from llmlb.router.call import Call, Direct
from llmlb.router.gateway.auth import principal_of
from llmlb.router.ids import new_id
from llmlb.router.redaction import kept_body, kept_json

NO_RETRY = "x-llmlb-no-retry"


def inner_id(request: Request) -> str:
    """The id of the request on the bus: the one in ``x-request-id``, unless the client chose that (it may repeat)."""
    own: str = request.ctx.request_id
    return new_id() if "x-request-id" in request.headers else own


def key_of(request: Request) -> str:
    """What fairness goes by: the id of the key or user that asks, else a digest of what was sent, or nothing."""
    principal = principal_of(request)
    if principal.key is not None:
        return principal.key.key_id
    if principal.user is not None:
        return principal.user.user_id
    given = request.headers.get("authorization") or request.headers.get("x-api-key")
    return _digest(given) if given else ""


@functools.lru_cache(maxsize=1024)
def _digest(given: str) -> str:
    return hashlib.sha256(given.encode()).hexdigest()[:12]


def call_of(
    request: Request, *, streamed: bool, direct: Direct | None = None, asked: InferRequest | None = None
) -> Call:
    """``asked``: the first request that was made of it."""
    headers = request.headers
    kept = kept_body if asked is None or not isinstance(asked.messages, WrittenMessages) else kept_json
    given: str | None = headers.get("x-request-id")
    return Call(
        key=key_of(request),
        # What is no id was replaced on the way in.
        client_request_id=given if given is not None and given == request.ctx.request_id else None,
        path=request.path,
        streamed=streamed,
        no_retry=headers.get(NO_RETRY, "") in ("1", "true"),
        bytes_in=len(request.body),
        body=kept(request.body),
        direct=direct,
    )
