"""GET /openapi.json, the OpenAPI document of this gateway, and GET /docs, a page that shows it.

The page is one answer and needs nothing from elsewhere. It runs no script but its own: its Content-Security-Policy
names the digest of that.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from functools import cache
from pathlib import Path

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

routes = Blueprint("docs")

_HERE = Path(__file__).parent


@routes.get("/openapi.json")
async def document(request: Request) -> HTTPResponse:
    """This document.

    OpenAPI 3.1, of the routes that this gateway has: a router's and a node's differ below `/v0`.
    """
    ctx = request.app.ctx
    if not hasattr(ctx, "openapi"):
        ctx.openapi, ctx.openapi_lock = None, asyncio.Lock()
    # Made once, when it is first asked for: it takes some tenths of a second, which nobody waits for at the start.
    async with ctx.openapi_lock:
        if ctx.openapi is None:
            ctx.openapi = await asyncio.to_thread(_document, request)
    return raw(ctx.openapi, content_type="application/json")


def _document(request: Request) -> bytes:
    from llmlb.router.gateway import openapi  # it imports every handler, and models that only it needs

    return orjson.dumps(openapi.document(request.app))


@routes.get("/docs")
async def page(request: Request) -> HTTPResponse:
    """This documentation, as a page for people."""
    body, policy = await asyncio.to_thread(_page)
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return raw(body, headers=headers, content_type="text/html; charset=utf-8")


@cache
def _page() -> tuple[bytes, str]:
    """The page, and what it may do."""
    style, script = ((_HERE / f"docs_page.{kind}").read_text() for kind in ("css", "js"))
    html = (_HERE / "docs_page.html").read_text()
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.replace("/*style*/", style).replace("/*script*/", script).encode(), policy


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
