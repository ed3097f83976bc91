"""Cross-origin requests: which pages of other sites a browser lets use this gateway. None, unless configured.

Source: WHATWG Fetch, "CORS protocol". With ``*`` every page may ask, but without cookies; it opens nothing that does
not ask for a key: a gateway without users refuses other sites' pages as before (:mod:`llmlb.router.gateway.peers`).
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from sanic import Request

MAX_AGE_S = 600
"""How long a browser may remember what it was told."""
EXPOSED = ", ".join(
    (
        *("x-request-id", "request-id", "retry-after"),
        *(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
        *("x-llmlb-node", "x-llmlb-queue-position", "x-llmlb-queue-wait-s"),
    )
)
"""What a page's script may read of an answer's headers."""
_NAMES = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z, ]{1,1024}")


def is_listed(request: Request) -> bool:
    """The page that asks is of an origin that the operator named (``*`` names nobody)."""
    listed: str = request.app.ctx.gateway.settings.cors_origins
    return listed not in ("", "*") and request.headers.get("origin", "").lower() in listed.split(",")


def add_headers(request: Request, headers: MutableMapping[str, Any]) -> None:
    """Put what the browser needs to know into an answer."""
    listed: str = request.app.ctx.gateway.settings.cors_origins
    if not listed:
        return
    if listed == "*":
        if "origin" not in request.headers:
            return
        headers["access-control-allow-origin"] = "*"
    else:
        add_vary(headers, "Origin")
        if not is_listed(request):
            return
        headers["access-control-allow-origin"] = request.headers["origin"]
        headers["access-control-allow-credentials"] = "true"
    headers["access-control-expose-headers"] = EXPOSED
    if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
        headers["access-control-allow-methods"] = headers.get("allow", "")
        wanted = request.headers.get("access-control-request-headers", "")
        if _NAMES.fullmatch(wanted):
            headers["access-control-allow-headers"] = wanted
        headers["access-control-max-age"] = str(MAX_AGE_S)
        add_vary(headers, "Access-Control-Request-Headers")


def add_vary(headers: MutableMapping[str, Any], name: str) -> None:
    """Tell caches that the answer depends on this header of the request."""
    given = str(headers.get("vary", ""))
    if name.lower() not in given.lower():
        headers["vary"] = f"{given}, {name}" if given else name
