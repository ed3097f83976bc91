"""The Sanic application, wired; and the server that runs it inside our own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import uuid
from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from llmlb.bus.errors import ConfigError
from llmlb.bus.logs import request_id_var
from llmlb.router.gateway import (
    anthropic,
    auth,
    cookies,
    identity,
    llmlb_node,
    llmlb_router,
    openai_chat,
    openai_embeddings,
    openai_models,
    openai_responses,
    operations,
    requests,
)
from llmlb.router.gateway.http_errors import handle_exception, id_headers
from llmlb.router.gateway.ports import Gateway

log = logging.getLogger("llmlb.router.gateway.app")

UPLOAD_TIMEOUT_S = 60
KEEP_ALIVE_S = 75
NEVER_S = 10 * 365 * 86400
BACKLOG = 1024
_touched_up = False
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def build_app(gateway: Gateway) -> Sanic[Any, Any]:
    """The application for one gateway. Each call makes a new one, so several live in one process."""
    global _touched_up
    app: Sanic[Any, Any] = Sanic(
        f"llmlb-{gateway.role}-{uuid.uuid4().hex[:8]}", configure_logging=False, dumps=orjson.dumps, loads=orjson.loads
    )
    app.config.update(
        REQUEST_MAX_SIZE=gateway.settings.max_body_bytes,
        REQUEST_TIMEOUT=UPLOAD_TIMEOUT_S,
        # How long an answer may take is decided by the stall limit, not by a clock over the whole of it.
        RESPONSE_TIMEOUT=NEVER_S,
        KEEP_ALIVE_TIMEOUT=KEEP_ALIVE_S,
        ACCESS_LOG=False,
        MOTD=False,
        FALLBACK_ERROR_FORMAT="json",
        # Sanic rewrites its own classes for the first app that starts, once a process: a second run fails. All our
        # apps use the same signals (none), so the first rewrite fits them all.
        TOUCHUP=not _touched_up,
    )
    _touched_up = True
    app.ctx.gateway = gateway
    for module in (operations, identity, openai_models, openai_chat, openai_embeddings, openai_responses, anthropic):
        app.blueprint(module.routes)
    app.blueprint(llmlb_router.routes if gateway.role == "router" else llmlb_node.routes)
    if gateway.role == "router":
        app.blueprint(requests.routes)
    app.exception(Exception)(_on_exception)
    app.register_middleware(_on_request, "request")
    app.register_middleware(_on_response, "response")
    return app


async def _on_exception(request: Request, error: Exception) -> HTTPResponse:
    return handle_exception(request, error)


async def _on_request(request: Request) -> None:
    given = request.headers.get("x-request-id", "")
    request.ctx.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    request_id_var.set(request.ctx.request_id)
    auth.check(request)


async def _on_response(request: Request, response: Any) -> None:
    response.headers.update(id_headers(request))
    response.headers.update(auth.headers_of(request))
    await cookies.renew(request, response)


class GatewayServer:
    """One listening gateway. :meth:`start`, then :meth:`stop`."""

    def __init__(self, app: Sanic[Any, Any]) -> None:
        self._app = app
        self._server: Any = None
        self.port = 0
        """The port it listens on, once started."""

    async def start(self, host: str, port: int, *, shared: bool = False) -> None:
        """Listen; port 0 lets the system choose. ``shared``: with other processes on the same port.

        Raises ConfigError when the address can't be had.
        """
        sock = _bind(host, port, shared=shared)
        self.port = sock.getsockname()[1]
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            server: Any = await self._app.create_server(
                sock=sock, backlog=BACKLOG, return_asyncio_server=True, asyncio_server_kwargs={"start_serving": False}
            )
            if server is None:
                raise ConfigError("the HTTP server could not be made")
            await server.startup()
            await server.start_serving()
            self._server = server
            undo.pop_all()
        log.info("gateway_listening address=%s:%d", host, self.port)

    async def stop(self, grace_s: float) -> None:
        """Take no new connections, let running answers finish for ``grace_s``, then cut what is left."""
        server, self._server = self._server, None
        if server is None:
            return
        server.server.close()
        for connection in list(server.connections):
            connection.close_if_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while server.connections:
                    await asyncio.sleep(0.05)
                    for connection in list(server.connections):
                        connection.close_if_idle()
        for connection in list(server.connections):
            connection.abort()
        await asyncio.sleep(0)
        self._app.shutdown_tasks(timeout=1)
        Sanic.unregister_app(self._app)


def _bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket's socket. Raises ConfigError, naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        where = f"port {port} on {host}"
        taken = error.errno == 98 or "in use" in str(error)
        why = "is taken by another process" if taken else f"can't be used: {error.strerror}"
        raise ConfigError(f"{where} {why}; choose another one with --port") from error
    sock.setblocking(False)
    return sock
