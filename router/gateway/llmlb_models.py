"""/v0 of a router: the models of the cluster, where they come from, and how far their downloads are."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson
from pydantic import ValidationError
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.hub import (
    CancelClusterTask,
    DeleteModel,
    DownloadModel,
    RegisterModel,
    SearchCatalog,
)
from llmlb.router.gateway.http_errors import answer_of, body_of
from llmlb.router.gateway.llmlb_models_schema import CatalogQuery, DownloadBody, RegisterBody
from llmlb.router.gateway.llmlb_router import message
from llmlb.router.gateway.openai_schema import parse
from llmlb.router.hub.registry import AlreadyRegistered

routes = Blueprint("llmlb_models", url_prefix="/v0")


def _ops(request: Request) -> Any:
    return request.app.ctx.gateway.model_ops


@routes.get("/models/hub")
async def hub(request: Request) -> HTTPResponse:
    """The supported and the registered models, with their state on the nodes.

    Always in the same order, and never waits for the hub: `downloads` and `likes` are at most ten minutes old, or null
    until they are known.
    """
    return message(_ops(request).models())


@routes.get("/models/catalog")
async def catalog(request: Request) -> HTTPResponse:
    """Search the hub's GGUF models, most downloaded first.

    Each variant (quantization) of a repository is a model that can be registered. When the hub does not answer or
    limits requests, the last answer is given again with `stale` and its age; without one, 503.
    """
    query = _query(request)
    ask = SearchCatalog(query=query.q, page=query.page, limit=query.limit, quant=query.quant)
    return message(await _ops(request).search(ask))


@routes.post("/models/register")
async def register(request: Request) -> HTTPResponse:
    """Register a model: every approved node, or the named ones, fetch it by themselves.

    Only metadata is read and stored: files, sizes, digests, pinned to a commit. `warnings` say what may go wrong. A
    model that is registered already is 409, with the registration as `existing`.
    """
    body = parse(RegisterBody, request.body)
    ask = RegisterModel(**body.model_dump(), registered_by=request.ctx.principal.name)
    try:
        return message(await _ops(request).register(ask), status=201)
    except AlreadyRegistered as error:
        existing = orjson.Fragment(error.existing.model_dump_json().encode())
        return raw(
            orjson.dumps({**body_of(error), "existing": existing}),
            status=answer_of(error).status,
            content_type="application/json",
        )


@routes.post("/models/<model:path>/download")
async def download(request: Request, model: str) -> HTTPResponse:
    """Let nodes fetch a registered model now.

    A node that fetches it already goes on, and one that is away begins when it is back. The router downloads nothing.
    """
    body = parse(DownloadBody, request.body)
    ask = DownloadModel(model=_named(model), all=body.all, nodes=body.nodes)
    return message(await _ops(request).download(ask), status=202)


@routes.delete("/models/<model:path>")
async def delete(request: Request, model: str) -> HTTPResponse:
    """Take a model out of the cluster.

    Requests that run finish; nodes remove its files unless their own user pulled it too, those that are away when they
    return.
    """
    return message(await _ops(request).delete(DeleteModel(model=_named(model))))


@routes.get("/tasks")
async def tasks(request: Request) -> HTTPResponse:
    """The downloads of all nodes: those under way, and those of the last days."""
    return message(_ops(request).tasks())


@routes.get("/tasks/<task:path>")
async def task(request: Request, task: str) -> HTTPResponse:
    """One download by its id; by a task's id without its node, or a registered model's name: on all nodes."""
    return message(_ops(request).tasks(unquote(task)))


@routes.delete("/tasks/<task:path>")
async def cancel_task(request: Request, task: str) -> HTTPResponse:
    """Give a download up: on its node, or as for `GET` on all of them.

    It is begun anew only when that is asked for. Partial files stay for it, unless `purge` is 1.
    """
    purge = request.args.get("purge", "0")
    if purge not in ("0", "1", "false", "true"):
        raise InvalidRequest("purge is 0 or 1", param="purge")
    ask = CancelClusterTask(task=unquote(task), purge=purge in ("1", "true"))
    return message(await _ops(request).cancel(ask))


def _named(text: str) -> str:
    name = unquote(text)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the model's name is not UTF-8", param="model") from None
    return name


def _query(request: Request) -> CatalogQuery:
    """Raises InvalidRequest naming the parameter at fault."""
    given = {name: values[0] for name, values in request.args.items()}
    try:
        return CatalogQuery.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])[:80]
        raise InvalidRequest(f"{name}: {first['msg']}", param=name) from None
