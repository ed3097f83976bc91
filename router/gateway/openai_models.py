"""GET /v1/models and /v1/models/<id>. Ids hold ``/`` and ``:``; aliases can be asked for, and are not listed."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import ModelUnknown
from llmlb.bus.messages.router import ClusterModel

routes = Blueprint("openai_models")


def _body(model: ClusterModel, id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": int(model.created_at), "owned_by": "llmlb"}


@routes.get("/v1/models")
async def list_models(request: Request) -> HTTPResponse:
    models = request.app.ctx.gateway.models.list_models()
    body = {"object": "list", "data": [_body(model, model.name) for model in models]}
    return raw(orjson.dumps(body), content_type="application/json")


@routes.get("/v1/models/<model:path>")
async def get_model(request: Request, model: str) -> HTTPResponse:
    name = unquote(model)
    for known in request.app.ctx.gateway.models.list_models():
        if name == known.name or name in known.aliases or name in known.also:
            return raw(orjson.dumps(_body(known, name)), content_type="application/json")
    raise ModelUnknown(f"the model '{name[:256]}' does not exist; GET /v1/models lists those that do", param="model")
