"""/v0 of a node's own gateway: that node, asked over the bus."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.router.gateway.llmlb_router import message
from llmlb.router.gateway.openai_schema import MAX_MODEL_NAME, parse

routes = Blueprint("llmlb_node", url_prefix="/v0")


class StopBody(BaseModel):
    """POST /v0/models/stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: StrictStr = Field(min_length=1, max_length=MAX_MODEL_NAME)


def _ops(request: Request) -> Any:
    return request.app.ctx.gateway.node_ops


@routes.get("/models")
async def list_models(request: Request) -> HTTPResponse:
    return message(await _ops(request).list_models())


@routes.post("/models/stop")
async def stop(request: Request) -> HTTPResponse:
    return message(await _ops(request).stop(parse(StopBody, request.body).model))


@routes.get("/models/<model:path>")
async def show(request: Request, model: str) -> HTTPResponse:
    return message(await _ops(request).show(unquote(model)))


@routes.get("/ps")
async def ps(request: Request) -> HTTPResponse:
    return message(await _ops(request).ps())


@routes.get("/status")
async def status(request: Request) -> HTTPResponse:
    gateway = request.app.ctx.gateway
    body = {
        "role": "node",
        "node_id": gateway.node_id,
        "version": gateway.version,
        "ready": gateway.readiness.ready,
    }
    return raw(orjson.dumps(body), content_type="application/json")
