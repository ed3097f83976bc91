"""The short way of an inference request through Sanic, and of its answer: most of what a request costs is not ours.

Sanic looks up the route, asks for signals, runs lists of middleware, makes a response object, and formats and cleans
each of its headers: a third of the CPU time of a short request (measured). For the few routes that carry the load the
same steps are done here in a row, and a plain answer's head is written as bytes. What is not plain (an error, cookies,
CORS, Anthropic's headers, HTTP/1.0, another route) goes Sanic's way, and looks the same to the client.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sanic import Request, Sanic
from sanic.exceptions import SanicException
from sanic.response import HTTPResponse, raw

from llmlb.router.gateway import sse
from llmlb.router.gateway.auth import headers_of, principal_of
from llmlb.router.gateway.entry import GatewayRequest, enter
from llmlb.router.gateway.http_errors import id_headers
from llmlb.router.gateway.http_stream import StrictHttp

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""Of POST. Anthropic's has further headers, and goes Sanic's way."""


class ShortWay:
    """Handles the requests of one application."""

    def __init__(self, app: Sanic[Any, Any]) -> None:
        self._app = app
        self._body_max: int = app.config.REQUEST_MAX_SIZE
        self._routes: dict[bytes, Any] | None = None

    async def handle(self, request: GatewayRequest) -> None:
        """In place of ``app.handle_request``. Raises CancelledError; anything else becomes an answer."""
        routes = self._routes or self._find()
        route = routes.get(request.raw_url) if request.method == "POST" else None
        http = request.stream
        if route is None or type(http) is not StrictHttp or http.upgrade_websocket:
            await self._app.handle_request(request)
            return
        request.route = route
        try:
            enter(request)
            if http.request_body:
                body = http.body_here(self._body_max)
                if body is None:
                    await request.receive_body()
                else:
                    request.body = body
            request.ctx.short = http
            response = await route.handler(request)
            if response is not None:
                response = await request.respond(response)
                await response.send(end_stream=True)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the top of a request: it becomes an answer, and is logged there
            await self._app.handle_exception(request, error, run_middleware=False)

    def _find(self) -> dict[bytes, Any]:
        """The routes, once the application has begun."""
        found: dict[bytes, Any] = {}
        for path in PATHS:
            try:
                route, _, _ = self._app.router.get(path, "POST", None)
            except SanicException:
                continue  # this gateway has no such route
            found[path.encode()] = route
        self._routes = found
        return found


def _plain(request: Request) -> StrictHttp | None:
    """The connection, where the head of a good answer has nothing in it that depends on more than the request's id."""
    http: StrictHttp | None = getattr(request.ctx, "short", None)
    if http is None or http.version != "1.1" or request.app.ctx.gateway.settings.cors_origins:
        return None
    return None if principal_of(request).claims is not None else http


def _head(request: Request, http: StrictHttp, more: str) -> bytes:
    """The same headers as :func:`llmlb.router.gateway.app._on_response` puts on any answer, and ``more``."""
    ctx = request.ctx
    if hasattr(ctx, "meter"):
        more = "".join(f"{name}: {value}\r\n" for name, value in headers_of(request).items()) + more
    return (
        f"HTTP/1.1 200 OK\r\nx-request-id: {ctx.request_id}\r\nx-llmlb-version: {request.app.ctx.gateway.version}\r\n"
        f"{more}connection: {'keep-alive' if http.keep_alive else 'close'}\r\n"
    ).encode()


async def send_json(request: Request, body: bytes) -> HTTPResponse | None:
    """Answer 200 with this JSON. What is returned is to be returned by the handler: None when the answer is out.

    Raises RequestCancelled when the client is gone.
    """
    http = _plain(request)
    if http is None:
        return raw(body, content_type="application/json")
    head = _head(request, http, f"content-length: {len(body)}\r\n")
    await http.answer(b"%bcontent-type: application/json\r\n\r\n%b" % (head, body))
    return None


class EventStream:
    """Server-sent events in chunks, head and first event in one piece. As Sanic's response: ``send``, then ``eof``."""

    def __init__(self, http: StrictHttp, head: bytes) -> None:
        self._http = http
        self._head = head

    async def send(self, data: bytes) -> None:
        """One chunk. Raises RequestCancelled when the client is gone."""
        await self._http.chunk(self._head, data)
        self._head = b""

    async def eof(self, data: bytes = b"") -> None:
        """The end, with one more chunk before it if there is data."""
        await self._http.chunk(self._head, data, last=True)


async def begin_events(request: Request) -> Any:
    """Begin an event stream: an :class:`EventStream`, or Sanic's response where that is needed."""
    http = _plain(request)
    if http is None:
        headers = {**sse.HEADERS, **id_headers(request)}
        return await request.respond(content_type=sse.CONTENT_TYPE, headers=headers)
    more = "".join(f"{name.lower()}: {value}\r\n" for name, value in sse.HEADERS.items())
    head = _head(request, http, f"{more}transfer-encoding: chunked\r\n")
    return EventStream(http, head + f"content-type: {sse.CONTENT_TYPE}\r\n\r\n".encode())
