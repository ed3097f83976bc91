"""Request bodies and queries of the routes for models of the cluster. Unknown fields are refused.

The answers are messages of :mod:`llmlb.bus.messages.hub`, one a route:

=======================================  ======  =======================================================
``GET /v0/models/hub``                   200     HubModelList
``POST /v0/models/register``             201     ModelRegistered; 409 carries the record as ``existing``
``DELETE /v0/models/<id>``               200     ModelDeleted
``GET /v0/models/catalog``               200     CatalogPage
``POST /v0/models/<id>/download``        202     DownloadStarted
``GET /v0/tasks``                        200     ClusterTaskList
``GET /v0/tasks/<id>``                   200     ClusterTaskList
``DELETE /v0/tasks/<id>?purge=``         200     ClusterTasksCancelled
=======================================  ======  =======================================================
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from llmlb.router.gateway.query_schema import DIGITS

MAX_ADDRESS = 1024
MAX_FILE = 512
MAX_TEMPLATE = 256 * 1024
MAX_NODES = 10_000

NodeRef = Annotated[StrictStr, Field(min_length=1, max_length=64)]
AliasName = Annotated[StrictStr, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class RegisterBody(BaseModel):
    """POST /v0/models/register."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: StrictStr = Field(
        min_length=1, max_length=MAX_ADDRESS, description="owner/model, owner/model:QUANT or an address on the hub"
    )
    filename: StrictStr | None = Field(
        default=None, min_length=1, max_length=MAX_FILE, description="a GGUF or Safetensors file of the repository"
    )
    display_name: StrictStr | None = Field(default=None, min_length=1, max_length=200, description="for people")
    aliases: tuple[AliasName, ...] = Field(default=(), max_length=16, description="further names for requests")
    chat_template: StrictStr | None = Field(
        default=None, min_length=1, max_length=MAX_TEMPLATE, description="Jinja, in place of the one in its files"
    )
    nodes: tuple[NodeRef, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_NODES, description="node ids or unique prefixes; left out: all"
    )


class DownloadBody(BaseModel):
    """POST /v0/models/<id>/download: ``{"all": true}`` or ``{"nodes": [...]}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    all: StrictBool = Field(default=False, description="every approved node it is meant for")
    nodes: tuple[NodeRef, ...] = Field(
        default=(), max_length=MAX_NODES, description="node ids or unique prefixes, when not all"
    )


class CatalogQuery(BaseModel):
    """GET /v0/models/catalog?q=&page=&limit=&quant=."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    q: str = Field(default="", max_length=200, description="words to look for; empty: the most downloaded")
    page: Annotated[int, Field(ge=1, le=100), DIGITS] = Field(default=1, description="from 1")
    limit: Annotated[int, Field(ge=1, le=100), DIGITS] = Field(default=50, description="models a page")
    quant: str | None = Field(default=None, min_length=1, max_length=32, description="such as Q4_K_M")
