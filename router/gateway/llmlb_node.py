"""/v0 of a node's own gateway: that node, asked over the bus."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.pulls import PullProgress
from llmlb.router.gateway.llmlb_router import message
from llmlb.router.gateway.openai_schema import MAX_MODEL_NAME, parse

routes = Blueprint("llmlb_node", url_prefix="/v0")

MAX_ADDRESS = 1024
"""Characters of what is pulled: an address holds more than a name."""


class ModelBody(BaseModel, json_schema_extra={"examples": [{"model": "smollm2"}]}):
    """POST /v0/models/stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: StrictStr = Field(min_length=1, max_length=MAX_MODEL_NAME, description="its name or an alias")


class PullBody(BaseModel, json_schema_extra={"examples": [{"model": "unsloth/SmolLM2-135M-Instruct-GGUF:Q4_K_M"}]}):
    """POST /v0/models/pull."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: StrictStr = Field(
        min_length=1, max_length=MAX_ADDRESS, description="owner/model, owner/model:QUANT or an address on the hub"
    )


def _shown(task: PullProgress) -> PullProgress:
    """Without the diagnostic of its error, which is for logs: it names folders, and what a hub has answered."""
    if task.error is None:
        return task
    return task.model_copy(update={"error": task.error.model_copy(update={"detail": None})})


def _ops(request: Request) -> Any:
    return request.app.ctx.gateway.node_ops


@routes.get("/models")
async def list_models(request: Request) -> HTTPResponse:
    """The models on this node."""
    return message(await _ops(request).list_models())


@routes.post("/models/stop")
async def stop(request: Request) -> HTTPResponse:
    """Unload a model.

    Its running requests are finished first.
    """
    return message(await _ops(request).stop(parse(ModelBody, request.body).model))


@routes.post("/models/pull")
async def pull(request: Request) -> HTTPResponse:
    """Download a model from the hub.

    The download goes on whatever becomes of the one who asked, and over restarts; see `/v0/tasks`. One that runs
    already is joined.
    """
    started = await _ops(request).pull(parse(PullBody, request.body).model)
    return message(started.model_copy(update={"task": _shown(started.task)}), status=202)


@routes.delete("/models/<model:path>")
async def remove(request: Request, model: str) -> HTTPResponse:
    """Delete a model from this node's disk.

    It is unloaded first, and its running requests are finished before.
    """
    return message(await _ops(request).remove(unquote(model)))


@routes.get("/tasks")
async def tasks(request: Request) -> HTTPResponse:
    """Downloads, running and past, newest first."""
    found = await _ops(request).tasks()
    return message(found.model_copy(update={"tasks": tuple(_shown(task) for task in found.tasks)}))


@routes.get("/tasks/<task:path>")
async def task(request: Request, task: str) -> HTTPResponse:
    """One download."""
    return message(_shown((await _ops(request).tasks(unquote(task))).tasks[0]))


@routes.delete("/tasks/<task:path>")
async def cancel_task(request: Request, task: str) -> HTTPResponse:
    """By id, or by the model's name as it was pulled."""
    purge = request.args.get("purge", "0")
    if purge not in ("0", "1", "false", "true"):
        raise InvalidRequest("purge is 0 or 1", param="purge")
    cancelled = await _ops(request).cancel_task(unquote(task), purge=purge in ("1", "true"))
    return message(cancelled.model_copy(update={"task": _shown(cancelled.task)}))


@routes.get("/models/<model:path>")
async def show(request: Request, model: str) -> HTTPResponse:
    """Everything about one model."""
    return message(await _ops(request).show(unquote(model)))


@routes.get("/ps")
async def ps(request: Request) -> HTTPResponse:
    """The models in memory."""
    return message(await _ops(request).ps())


@routes.get("/status")
async def status(request: Request) -> HTTPResponse:
    """This node, in short."""
    gateway = request.app.ctx.gateway
    body = {
        "role": "node",
        "node_id": gateway.node_id,
        "version": gateway.version,
        "ready": gateway.readiness.ready,
    }
    return raw(orjson.dumps(body), content_type="application/json")
