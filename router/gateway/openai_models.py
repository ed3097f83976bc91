"""GET /v1/models and /v1/models/<id>. Ids hold ``/`` and ``:``; aliases can be asked for, and are not listed.

OpenAI's and Anthropic's clients ask at the same address. Who sends ``anthropic-version`` gets Anthropic's shape.
Source: OpenAI's API reference, "Models"; Anthropic's API reference, "Models".
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import InvalidRequest, ModelUnknown
from llmlb.bus.messages.router import ClusterModel
from llmlb.router.gateway.query_schema import page_limit

routes = Blueprint("openai_models")

KEPT_S = 0.1
"""How long the list is told without looking again: clients ask for it in crowds, and 500 models take milliseconds."""
PAGE_MAX = 1000
"""Models of a page of Anthropic's list; so many too where the client says nothing."""
LAST_SECOND = 253_402_300_799.0
"""Of the year 9999, in Unix seconds: later ones have no date."""


def _created(model: ClusterModel) -> int:
    """Unix seconds that can be told: a node's clock may say anything."""
    return int(max(0.0, min(model.created_at, LAST_SECOND)))


def _body(model: ClusterModel, id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": _created(model), "owned_by": "llmlb"}


def _anthropic_body(model: ClusterModel, id: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(_created(model), UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": id, "display_name": id, "created_at": created, "lifecycle": "active"}


def _speaks_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _answer(request: Request, body: bytes) -> HTTPResponse:
    headers = {"request-id": request.ctx.request_id} if _speaks_anthropic(request) else None
    return raw(body, headers=headers, content_type="application/json")


@routes.get("/v1/models")
async def list_models(request: Request) -> HTTPResponse:
    """The models that can be used now.

    Aliases can be asked for, and are not listed. With the header `anthropic-version` in Anthropic's shape, in pages.
    """
    if _speaks_anthropic(request):
        return _answer(request, orjson.dumps(_page(request, request.app.ctx.gateway.models.list_models())))
    ctx, now = request.app.ctx, time.monotonic()
    told, at = getattr(ctx, "models_told", (b"", -KEPT_S))
    if now - at >= KEPT_S:
        models = ctx.gateway.models.list_models()
        told = orjson.dumps({"object": "list", "data": [_body(model, model.name) for model in models]})
        ctx.models_told = (told, now)
    return _answer(request, told)


def _page(request: Request, models: Sequence[ClusterModel]) -> dict[str, Any]:
    """A page of Anthropic's list. Raises InvalidRequest."""
    names = [model.name for model in models]
    limit = page_limit(request.args.get("limit"), PAGE_MAX, PAGE_MAX)
    after, before = request.args.get("after_id"), request.args.get("before_id")
    first, end = 0, len(names)
    for param, name in (("after_id", after), ("before_id", before)):
        if name is not None and name not in names:
            raise InvalidRequest(f"{param}: no model of this list", param=param)
    if after is not None:
        first = names.index(after) + 1
    if before is not None:
        end = names.index(before)
        first = max(first, end - limit)
    page = models[first : min(end, first + limit)]
    more = first > 0 if before is not None else first + limit < end
    ends = {"first_id": page[0].name if page else None, "last_id": page[-1].name if page else None}
    return {"data": [_anthropic_body(model, model.name) for model in page], **ends, "has_more": more}


@routes.get("/v1/models/<model:path>")
async def get_model(request: Request, model: str) -> HTTPResponse:
    """One model, by its name or an alias.

    With the header `anthropic-version` in Anthropic's shape.
    """
    name = unquote(model)
    for known in request.app.ctx.gateway.models.list_models():
        if name == known.name or name in known.aliases or name in known.also:
            body = _anthropic_body if _speaks_anthropic(request) else _body
            return _answer(request, orjson.dumps(body(known, name)))
    raise ModelUnknown(f"the model '{name[:256]}' does not exist; GET /v1/models lists those that do", param="model")
