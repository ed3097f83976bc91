"""/v0 of a router: the cluster."""

from __future__ import annotations

from typing import Any

from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.codec import encode
from llmlb.bus.messages.base import Message

routes = Blueprint("llmlb_router", url_prefix="/v0")


def message(body: Message, *, status: int = 200) -> HTTPResponse:
    """A message of the bus as HTTP answer: the same fields."""
    return raw(encode(body), status=status, content_type="application/json")


def _ops(request: Request) -> Any:
    return request.app.ctx.gateway.router_ops


@routes.get("/nodes")
async def nodes(request: Request) -> HTTPResponse:
    return message(_ops(request).nodes())


@routes.get("/models")
async def models(request: Request) -> HTTPResponse:
    return message(_ops(request).models())


@routes.get("/status")
async def status(request: Request) -> HTTPResponse:
    return message(_ops(request).status())


@routes.post("/nodes/<node:str>/approve")
async def approve(request: Request, node: str) -> HTTPResponse:
    return message(await _ops(request).approve(node))
