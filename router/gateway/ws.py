"""/v0/ws of a router: what happens in the cluster, as messages over one WebSocket. See docs/api.md, "Events".

Everything is checked before the connection is a WebSocket, so that a refusal is an HTTP error; what allows a client to
be here is checked again while it stays. Clients send nothing but pongs.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sanic import Blueprint, Request
from sanic.exceptions import WebsocketClosed
from websockets.exceptions import ConnectionClosed

from llmlb.bus.errors import BusDown, Forbidden, InvalidRequest, LlmlbError, NodeBusy
from llmlb.router.gateway import auth, cors, entry
from llmlb.router.gateway.auth import Principal, principal_of
from llmlb.router.gateway.peers import host_of
from llmlb.router.gateway.ports import Feed, Gateway
from llmlb.router.gateway.query_schema import DIGITS
from llmlb.router.live_feed import PERMISSIONS

log = logging.getLogger("llmlb.router.gateway.ws")

SUBPROTOCOL = "llmlb.v1"
MESSAGE_MAX = 4096
"""Bytes of a message of a client: it has nothing to say."""
PING_EVERY_S, PONG_WITHIN_S = 10, 10
CHECK_S = 0.5
GOING, POLICY, NOT_ALLOWED, SLOW = 1001, 1008, 4001, 4008
"""Close codes. Source: RFC 6455, 7.4; those from 4000 on are our own."""
_SOCKET_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")

End = tuple[int, str]

routes = Blueprint("ws", url_prefix="/v0")


class EventsQuery(BaseModel):
    """GET /v0/ws."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    types: str | None = Field(
        default=None,
        max_length=256,
        description=f"only these, comma-separated: {', '.join(sorted(PERMISSIONS))}; left out: all that one may read",
    )
    after: Annotated[int, Field(ge=0, le=2**63 - 1), DIGITS] | None = Field(
        default=None, description="the id of the last message one has; left out: from now on"
    )
    stream: str | None = Field(
        default=None, max_length=64, description="the `stream` of the `hello` that came with that id"
    )


@routes.on_request
async def before(request: Request) -> None:
    """What has to be known while an HTTP error can still be answered. Raises LlmlbError."""
    entry.enter(request)
    headers = request.headers
    versions = headers.get("sec-websocket-version", "") == "13"
    key = _SOCKET_KEY.fullmatch(headers.get("sec-websocket-key", ""))
    upgrade = "upgrade" in headers.get("connection", "").lower()
    if headers.get("upgrade", "").lower() != "websocket" or not (versions and key and upgrade):
        raise InvalidRequest("this address speaks WebSocket (RFC 6455, version 13) and nothing else")
    _check_origin(request)
    offered = [part.strip() for part in ",".join(headers.getall("sec-websocket-protocol", [])).split(",")]
    if any(offered) and SUBPROTOCOL not in offered:
        raise InvalidRequest(f"of the subprotocols, one must be {SUBPROTOCOL}")
    query = _query(request)
    request.ctx.wanted = query, _kinds(query, principal_of(request))
    gateway: Gateway = request.app.ctx.gateway
    if gateway.live is None:
        raise BusDown("this gateway has no events yet")
    if gateway.live.full:
        raise NodeBusy("too many clients listen to events at this gateway")


def _check_origin(request: Request) -> None:
    """A browser lets the pages of every site open a WebSocket, with our cookie: only those of our own may.

    Whoever shows a key is asked nothing: no site has one that was not given it. Raises Forbidden.
    """
    origin = request.headers.get("origin")
    if origin is None or principal_of(request).key is not None or cors.is_listed(request):
        return
    try:
        own = bool(origin) and urlsplit(origin).netloc.lower() == host_of(request).lower()
    except ValueError:
        own = False
    if not own:
        raise Forbidden("a page of another site asks; it needs an API key, or to be listed in LLMLB_CORS_ORIGINS")


def _query(request: Request) -> EventsQuery:
    """Raises InvalidRequest naming the parameter at fault."""
    given = {name: values[0] for name, values in request.get_args(keep_blank_values=True).items()}
    try:
        return EventsQuery.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])[:80]
        raise InvalidRequest(f"{name}: {first['msg']}", param=name) from None


def _may(kind: str, principal: Principal) -> bool:
    return principal.key is None or PERMISSIONS[kind] in principal.key.permissions


def _kinds(query: EventsQuery, principal: Principal) -> frozenset[str]:
    """Raises InvalidRequest, Forbidden."""
    if query.types is None:
        kinds = frozenset(kind for kind in PERMISSIONS if _may(kind, principal))
        if not kinds:
            raise Forbidden("events need the permission models.read or nodes; the key that was sent has neither")
        return kinds
    kinds = frozenset(part.strip() for part in query.types.split(",") if part.strip())
    if not kinds or not kinds <= PERMISSIONS.keys():
        raise InvalidRequest(f"types are of {', '.join(sorted(PERMISSIONS))}", param="types")
    for kind in sorted(kinds):
        if not _may(kind, principal):
            raise Forbidden(f"{kind} needs the permission {PERMISSIONS[kind]}; the key that was sent has it not")
    return kinds


@routes.websocket("/ws", subprotocols=[SUBPROTOCOL])  # type: ignore[untyped-decorator]
async def events(request: Request, socket: Any) -> None:
    """Events as they happen, over a WebSocket.

    Each message is `{"v": 1, "id", "type", "at", "data"}`; the first is `hello`. Whoever comes back with `after`, the
    last `id` it had, gets what it missed, or `reset` when that is not there any more: then it reads the lists anew and
    goes on. Keys need `models.read` for models and tasks, `nodes` for nodes. A page's script offers the subprotocols
    `llmlb.v1` and, if it has a key, `llmlb.key.<key>`. A client that does not read is closed with 4008, one whose key
    or session is over with 4001.
    """
    gateway: Gateway = request.app.ctx.gateway
    query, kinds = request.ctx.wanted
    assert gateway.live is not None
    try:
        feed = gateway.live.open(kinds, query.after, query.stream)
    except LlmlbError as error:
        socket.fail_connection(1013, error.message)
        return
    try:
        code, reason = await _serve(request, socket, feed, gateway.live.ending)
    finally:
        feed.close()
    log.debug("events_client_ended code=%d reason=%r", code, reason)
    socket.fail_connection(code, reason)


async def _serve(request: Request, socket: Any, feed: Feed, ending: asyncio.Event) -> End:
    """Until one of the three has a reason to end."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_watch(request, feed, ending)),
            group.create_task(_listen(socket)),
            group.create_task(_send(socket, feed)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    # A client that goes away cancels whoever waits for its messages.
    return next((task.result() for task in tasks if not task.cancelled()), (1000, ""))


async def _send(socket: Any, feed: Feed) -> End:
    try:
        while True:
            for text in await feed.next():
                await socket.send(text)
    except (ConnectionClosed, WebsocketClosed):
        return 1000, ""


async def _listen(socket: Any) -> End:
    try:
        await socket.recv()
    except (ConnectionClosed, WebsocketClosed):
        return 1000, ""
    return POLICY, "clients send nothing here"


async def _watch(request: Request, feed: Feed, ending: asyncio.Event) -> End:
    """Whether the client may stay: it reads, its key or session is good, and the gateway goes on."""
    kinds = request.ctx.wanted[1]
    while True:
        await asyncio.sleep(CHECK_S)
        if ending.is_set():
            return GOING, "this gateway ends; connect again"
        if feed.slow.is_set():
            return SLOW, "too slow: too many messages were not read; connect again with the last id"
        try:
            auth.check(request)
        except LlmlbError:
            return NOT_ALLOWED, "the key or session is not good any more"
        if not all(_may(kind, principal_of(request)) for kind in kinds):
            return NOT_ALLOWED, "the key does not allow it any more"
