"""/v0 of a router: the cluster."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.codec import encode
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.router import ChangeNode, MakeJoinToken
from llmlb.router.gateway.openai_schema import Number, parse

routes = Blueprint("llmlb_router", url_prefix="/v0")

TEN_YEARS_S = 10 * 365 * 86400.0


class LabelsBody(BaseModel, json_schema_extra={"examples": [{"labels": ["gpu", "berlin"]}]}):
    """PUT /v0/nodes/<node>/labels: all that an admin gives it, in place of those before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[Annotated[StrictStr, Field(max_length=63)], ...] = Field(
        max_length=32, description="all that it has from now on, beside its own"
    )


class JoinTokenBody(BaseModel, json_schema_extra={"examples": [{"name": "rack 3", "uses": 8, "expires_in_s": 3600}]}):
    """POST /v0/join-tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: StrictStr = Field(default="", max_length=100, description="what it is for, for people")
    uses: StrictInt | None = Field(default=None, ge=1, le=10_000, description="nodes it lets in; left out: any number")
    expires_in_s: Number | None = Field(default=None, gt=0, le=TEN_YEARS_S, description="seconds; left out: never")


def message(body: Message, *, status: int = 200) -> HTTPResponse:
    """A message of the bus as HTTP answer: the same fields."""
    return raw(encode(body), status=status, content_type="application/json")


def _ops(request: Request) -> Any:
    return request.app.ctx.gateway.router_ops


@routes.get("/nodes")
async def nodes(request: Request) -> HTTPResponse:
    """All nodes."""
    return message(_ops(request).nodes())


@routes.get("/models")
async def models(request: Request) -> HTTPResponse:
    """The models of the cluster."""
    return message(_ops(request).models())


@routes.get("/status")
async def status(request: Request) -> HTTPResponse:
    """The cluster in numbers."""
    return message(_ops(request).status())


@routes.post("/nodes/<node:str>/approve")
async def approve(request: Request, node: str) -> HTTPResponse:
    """Let a node in."""
    return message(await _ops(request).approve(node))


async def _change(request: Request, node: str, action: Literal["reject", "drain", "undrain"]) -> HTTPResponse:
    return message(await _ops(request).change(ChangeNode(node=node, action=action)))


@routes.post("/nodes/<node:str>/reject")
async def reject(request: Request, node: str) -> HTTPResponse:
    """Refuse a node.

    It gets no work until it is approved.
    """
    return await _change(request, node, "reject")


@routes.post("/nodes/<node:str>/drain")
async def drain(request: Request, node: str) -> HTTPResponse:
    """Give a node no new work.

    What runs on it is finished.
    """
    return await _change(request, node, "drain")


@routes.post("/nodes/<node:str>/undrain")
async def undrain(request: Request, node: str) -> HTTPResponse:
    """Put a drained node back to work."""
    return await _change(request, node, "undrain")


@routes.put("/nodes/<node:str>/labels")
async def label(request: Request, node: str) -> HTTPResponse:
    """Label a node.

    These take the place of the labels that an admin gave it before; its own stay.
    """
    given = parse(LabelsBody, request.body).labels
    return message(await _ops(request).change(ChangeNode(node=node, action="label", labels=given)))


@routes.delete("/nodes/<node:str>")
async def remove(request: Request, node: str) -> HTTPResponse:
    """Forget a node.

    One that still runs comes back as a new one.
    """
    return message(await _ops(request).remove(node))


@routes.post("/join-tokens")
async def make_join_token(request: Request) -> HTTPResponse:
    """Make a join token.

    Nodes that have it (`LLMLB_JOIN_TOKEN`) come in without being approved one by one. It is shown this once.
    """
    body = parse(JoinTokenBody, request.body)
    made = MakeJoinToken(name=body.name, uses=body.uses, expires_in_s=body.expires_in_s)
    return message(await _ops(request).make_join_token(made), status=201)
