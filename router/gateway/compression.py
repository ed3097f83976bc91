"""gzip for JSON that is long, for clients that take it. Never for event streams, whose pieces must not wait."""

from __future__ import annotations

import asyncio
import functools
import gzip
import re
from typing import Any

from sanic import Request

from llmlb.router.gateway.cors import add_vary

LEAST = 1024
"""Bytes from which it is worth it."""
IN_THREAD = 256 * 1024
"""From so many bytes on it would hold up the loop for milliseconds."""
LEVEL = 5
_CODING = re.compile(r"\s*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?", re.IGNORECASE)


@functools.lru_cache(maxsize=256)
def wants_gzip(accept_encoding: str) -> bool:
    """RFC 9110, 12.5.3: gzip is named, or ``*`` is, and not with a weight of 0; and nothing is liked better."""
    weights: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        if (match := _CODING.fullmatch(part)) is not None:
            weights[match[1]] = float(match[2] or 1)
    gzip_weight = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return 0 < gzip_weight >= weights.get("identity", 0.0)


async def compress(request: Request, response: Any) -> None:
    """Pack the body of an answer to GET, where that is asked for and worth it."""
    body = getattr(response, "body", None)
    if request.method != "GET" or not body or len(body) < LEAST or response.status != 200:
        return
    if not str(response.content_type).startswith("application/json") or "content-encoding" in response.headers:
        return
    add_vary(response.headers, "Accept-Encoding")
    accepted = ",".join(request.headers.getall("accept-encoding", []))
    if not wants_gzip(accepted):
        return
    packed = await asyncio.to_thread(_packed, body) if len(body) >= IN_THREAD else _packed_again(body)
    response.body = packed
    response.headers["content-encoding"] = "gzip"


@functools.lru_cache(maxsize=8)
def _packed_again(body: bytes) -> bytes:
    """Lists that are told from memory are packed once."""
    return _packed(body)


def _packed(body: bytes) -> bytes:
    return gzip.compress(body, LEVEL, mtime=0)
