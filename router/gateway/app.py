"""The Sanic application, wired; and the server that runs it inside our own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import uuid
from dataclasses import replace
from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from llmlb.bus.errors import ConfigError
from llmlb.router.gateway import (
    anthropic,
    auth,
    compression,
    cookies,
    cors,
    docs_page,
    identity,
    llmlb_models,
    llmlb_node,
    llmlb_router,
    openai_chat,
    openai_embeddings,
    openai_models,
    openai_responses,
    operations,
    requests,
    ws,
)
from llmlb.router.gateway.body_budget import budget_of
from llmlb.router.gateway.entry import GatewayRequest, enter
from llmlb.router.gateway.http_connection import Connection, Patience
from llmlb.router.gateway.http_errors import handle_exception, id_headers
from llmlb.router.gateway.http_receiver import BUFFER_BYTES
from llmlb.router.gateway.memory import keep_freed_memory
from llmlb.router.gateway.ports import Gateway
from llmlb.router.gateway.short_way import ShortWay

log = logging.getLogger("llmlb.router.gateway.app")

SURFACES = (openai_models, openai_chat, openai_embeddings, openai_responses, anthropic)
BACKLOG = 1024
FILES_MAX = 65_536
FILES_KEPT = 512
"""Open files that are not connections of clients: the bus, databases, logs, workers."""
TCP_IDLE_S, TCP_EVERY_S, TCP_TIMES = 60, 15, 4
"""When a silent peer is asked for a sign of life by TCP, and how often: one whose machine is gone is noticed."""
UNSENT_MAX = 128 * 1024
"""Bytes that the kernel takes beyond what a peer has room for: else it is megabytes for each that does not read."""
_touched_up = False


def build_app(gateway: Gateway) -> Sanic[Any, Any]:
    """The application for one gateway. Each call makes a new one, so several live in one process."""
    global _touched_up
    app: Sanic[Any, Any] = Sanic(
        f"llmlb-{gateway.role}-{uuid.uuid4().hex[:8]}",
        request_class=GatewayRequest,
        configure_logging=False,
        dumps=orjson.dumps,
        loads=orjson.loads,
    )
    app.config.update(
        REQUEST_MAX_SIZE=gateway.settings.max_body_bytes,
        ACCESS_LOG=False,
        MOTD=False,
        FALLBACK_ERROR_FORMAT="json",
        WEBSOCKET_MAX_SIZE=ws.MESSAGE_MAX,
        WEBSOCKET_PING_INTERVAL=ws.PING_EVERY_S,
        WEBSOCKET_PING_TIMEOUT=ws.PONG_WITHIN_S,
        # Sanic rewrites its own classes for the first app that starts, once a process: a second run fails. All our
        # apps use the same signals (none), so the first rewrite fits them all.
        TOUCHUP=not _touched_up,
    )
    _touched_up = True
    logging.getLogger("sanic.root").setLevel(logging.WARNING)  # it tells of every client that goes away
    app.ctx.gateway = gateway
    app.ctx.patience = Patience(gateway.settings.client_timeout_s, gateway.settings.idle_timeout_s)
    processes = gateway.settings.router_workers if gateway.role == "router" else 1
    app.ctx.body_budget = budget_of(gateway.settings, processes=processes)
    app.ctx.arrivals = bytearray(BUFFER_BYTES)
    for module in (operations, docs_page, identity, *SURFACES):
        app.blueprint(module.routes)
    app.blueprint(llmlb_router.routes if gateway.role == "router" else llmlb_node.routes)
    if gateway.role == "router":
        app.blueprint(requests.routes)
        app.blueprint(llmlb_models.routes)
        app.blueprint(ws.routes)
    app.ctx.short_way = ShortWay(app)
    app.exception(Exception)(_on_exception)
    app.register_middleware(_on_request, "request")
    app.register_middleware(_on_response, "response")
    return app


async def _on_exception(request: Request, error: Exception) -> HTTPResponse:
    return handle_exception(request, error)


async def _on_request(request: Request) -> None:
    enter(request)


async def _on_response(request: Request, response: Any) -> None:
    response.headers.update(id_headers(request))
    response.headers["x-llmlb-version"] = request.app.ctx.gateway.version
    response.headers.update(auth.headers_of(request))
    await cookies.renew(request, response)
    cors.add_headers(request, response.headers)
    await compression.compress(request, response)


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
        self._app.ctx.patience = replace(self._app.ctx.patience, connections_max=raise_file_limit())
        keep_freed_memory()
        sock = _bind(host, port, shared=shared)
        self.port = sock.getsockname()[1]
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            server: Any = await self._app.create_server(
                sock=sock,
                backlog=BACKLOG,
                protocol=Connection,
                return_asyncio_server=True,
                asyncio_server_kwargs={"start_serving": False},
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


def raise_file_limit() -> int:
    """Let this process have as many open files as it may; how many of them can be clients' connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    have = FILES_MAX if soft == resource.RLIM_INFINITY else soft
    return max(have - FILES_KEPT, have // 2)


def _set_options(sock: socket.socket) -> None:
    """What is accepted inherits them, on Linux."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": TCP_IDLE_S, "TCP_KEEPINTVL": TCP_EVERY_S, "TCP_KEEPCNT": TCP_TIMES}
    for name, value in {**options, "TCP_NOTSENT_LOWAT": UNSENT_MAX}.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket's socket. Raises ConfigError, naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _set_options(sock)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        where = f"port {port} on {host}"
        taken = error.errno == 98 or "in use" in str(error)
        why = "is taken by another process" if taken else f"can't be used: {error.strerror}"
        raise ConfigError(f"{where} {why}; choose another one with --port") from error
    sock.setblocking(False)
    return sock
