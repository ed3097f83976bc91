"""Answers and parameters of llmlb's own routes, where they are not messages of the bus; for the document.

Tests hold every answer against these.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from llmlb.bus.messages.identity import KeyLimits
from llmlb.bus.messages.infer import Timings, Usage
from llmlb.bus.messages.requests import RequestAttempt
from llmlb.router.gateway.requests import TEXT_MAX
from llmlb.router.history_query import LIMIT_DEFAULT, LIMIT_MAX

Role = Literal["admin", "viewer"]

# Operations


class About(BaseModel):
    name: Literal["llmlb"]
    role: Literal["router", "node"] = Field(description="whose gateway it is")
    version: str
    api: str = Field(description="where OpenAI's API begins")


class Health(BaseModel):
    status: Literal["ok"]
    role: Literal["router", "node"] = Field(description="whose gateway it is")
    version: str


class Ready(BaseModel):
    status: Literal["ready"]


class NodeStatus(BaseModel):
    role: Literal["node"]
    node_id: str | None
    version: str
    ready: bool = Field(description="as `/ready` tells")


class CancelTaskQuery(BaseModel):
    purge: Literal["0", "1", "false", "true"] = Field(default="0", description="1: drop the partial files too")


# Past requests


class RequestRow(BaseModel):
    """One request, without what was said."""

    request_id: str
    stored_at: float = Field(description="Unix seconds of the bus's clock")
    started_at: float = Field(description="when it arrived, Unix seconds")
    gateway_id: str = Field(description="the gateway process")
    model: str = Field(description="the name the client used")
    node_id: str = Field(description="the node that answered, or was asked last")
    kind: str = Field(description="chat, completion or embedding")
    path: str = Field(description="HTTP path")
    streamed: bool
    key: str | None = Field(description="id of the API key or user; null: without one")
    status: str = Field(description="ok, error or cancelled")
    reason: str | None = Field(description="code of the error")
    finish_reason: str | None
    attempts: int = Field(description="nodes asked")
    migrations: int = Field(description="times the answer was carried on elsewhere")
    placement: str = Field(description="why this node")
    queue_ms: float = Field(description="time in the gateway's queue")
    first_token_ms: float | None = Field(description="from arrival to the first text")
    inter_token_ms: float | None = Field(description="mean time between tokens")
    total_ms: float = Field(description="from arrival to the end")
    bytes_in: int = Field(description="bytes of the request's body")
    bytes_out: int = Field(description="bytes of text of the answer, UTF-8")
    usage: Usage | None = Field(description="tokens, where the end was reached")


class RequestPage(BaseModel):
    requests: list[RequestRow] = Field(description="newest first")
    next: str | None = Field(description="what `before` takes for the next page; null: there is no more")


class RequestDetails(RequestRow):
    """One request with all that is known. A newer gateway may have written fields that this version does not know."""

    request_body: str | None = Field(description="JSON of the request, images cut out, 64 KiB at most")
    answer: str | None = Field(description="text of the answer, 64 KiB at most")
    tried: list[RequestAttempt] = Field(description="every node that was asked, in order")
    timings: Timings | None = Field(description="times on the node")


_TIME = "Unix seconds, or a time like 2026-01-31T12:00:00Z"


class RequestQuery(BaseModel):
    """What ``requests.PARAMETERS`` reads."""

    model: str | None = Field(default=None, min_length=1, max_length=TEXT_MAX, description="the name the client used")
    node: str | None = Field(default=None, pattern="^[0-9a-fA-F]{1,32}$", description="a node id, or its beginning")
    status: Literal["ok", "error", "cancelled"] | None = Field(default=None, description="how it ended")
    reason: str | None = Field(default=None, min_length=1, max_length=TEXT_MAX, description="code of the error")
    key: str | None = Field(default=None, min_length=1, max_length=TEXT_MAX, description="id of the API key or user")
    kind: Literal["chat", "completion", "embedding"] | None = Field(default=None, description="what was asked for")
    path: str | None = Field(default=None, min_length=1, max_length=TEXT_MAX, description="HTTP path")
    since: str | None = Field(default=None, description=f"arrived then or later: {_TIME}")
    until: str | None = Field(default=None, description=f"arrived before: {_TIME}")
    min_ms: float | None = Field(default=None, ge=0, description="took so long or longer, milliseconds")
    max_ms: float | None = Field(default=None, ge=0, description="took so long or shorter, milliseconds")
    search: str | None = Field(default=None, min_length=1, max_length=TEXT_MAX, description="part of the request id")
    before: str | None = Field(default=None, description="`next` of the page before", pattern="^[0-9.e+-]+~.+$")
    limit: int = Field(default=LIMIT_DEFAULT, ge=1, le=LIMIT_MAX, description="requests a page")


# Who may


class UserView(BaseModel):
    name: str
    role: str = Field(description="admin or viewer")
    created_at: float = Field(description="Unix seconds")


class UserList(BaseModel):
    users: list[UserView] = Field(description="by name")


class LoggedIn(UserView):
    csrf_token: str = Field(description="what `x-csrf-token` takes")
    expires_at: float = Field(description="Unix seconds; moved on while the session is in use")


class LoggedOut(BaseModel):
    logged_out: Literal[True]


class Me(BaseModel):
    """Who asks."""

    kind: Literal["user", "key", "local"] = Field(description="local: a program on this machine, without credentials")
    name: str | None
    role: str | None = Field(description="of a user")
    permissions: list[str]
    csrf_token: str | None = Field(description="of a session: what `x-csrf-token` takes")


class UserRemoved(BaseModel):
    name: str


class InvitationMade(BaseModel):
    code: str = Field(description="shown this once; it makes one user")
    role: str = Field(description="of the user it makes")
    expires_at: float = Field(description="Unix seconds")


class KeyView(BaseModel):
    key_id: str = Field(description="names it without giving it away")
    name: str
    permissions: list[str]
    created_by: str
    created_at: float = Field(description="Unix seconds")
    expires_at: float | None = Field(description="Unix seconds; null: never")
    last_used_at: float | None = Field(description="Unix seconds, some minutes late; null: not yet")
    limits: KeyLimits


class KeyList(BaseModel):
    keys: list[KeyView]


class KeyMade(KeyView):
    key: str = Field(description="`sk_…`, shown this once")


# Stored responses


class InputItemsQuery(BaseModel):
    order: Literal["asc", "desc"] = Field(default="desc", description="asc: oldest first")
    after: str | None = Field(default=None, description="the last item of the page before, as `last_id`")
    limit: int = Field(default=20, ge=1, le=100, description="items a page")


class RetrieveQuery(BaseModel):
    stream: Literal["false", "0"] | None = Field(default=None, description="a stored response is not streamed")


OpenApi = dict[str, Any]
