"""GET /v1/models and /v1/models/<id>. Ids hold ``/`` and ``:``; aliases can be asked for, and are not listed."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import ModelUnknown
from llmlb.bus.messages.router import ClusterModel

routes = Blueprint("openai_models")

KEPT_S = 0.1
"""How long the list is told without looking again: clients ask for it in crowds, and 500 models take milliseconds."""


def _body(model: ClusterModel, id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": int(model.created_at), "owned_by": "llmlb"}


@routes.get("/v1/models")
async def list_models(request: Request) -> HTTPResponse:
    """The models that can be used now.

    Aliases can be asked for, and are not listed.
    """
    ctx, now = request.app.ctx, time.monotonic()
    told, at = getattr(ctx, "models_told", (b"", -KEPT_S))
    if now - at >= KEPT_S:
        models = ctx.gateway.models.list_models()
        told = orjson.dumps({"object": "list", "data": [_body(model, model.name) for model in models]})
        ctx.models_told = (told, now)
    return raw(told, content_type="application/json")


@routes.get("/v1/models/<model:path>")
async def get_model(request: Request, model: str) -> HTTPResponse:
    """One model, by its name or an alias."""
    name = unquote(model)
    for known in request.app.ctx.gateway.models.list_models():
        if name == known.name or name in known.aliases or name in known.also:
            return raw(orjson.dumps(_body(known, name)), content_type="application/json")
    raise ModelUnknown(f"the model '{name[:256]}' does not exist; GET /v1/models lists those that do", param="model")
