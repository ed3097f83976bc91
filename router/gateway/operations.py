"""For those who run it: /health (alive), /ready (bus reachable), /metrics (Prometheus), / (what this is)."""

from __future__ import annotations

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import BusDown, NotFound

routes = Blueprint("operations")


@routes.get("/")
async def root(request: Request) -> HTTPResponse:
    """What this is, and which version."""
    gateway = request.app.ctx.gateway
    body = {"name": "llmlb", "role": gateway.role, "version": gateway.version, "api": "/v1"}
    return raw(orjson.dumps(body), content_type="application/json")


@routes.get("/health")
async def health(request: Request) -> HTTPResponse:
    """Alive.

    Says nothing of the bus; see `/ready`.
    """
    gateway = request.app.ctx.gateway
    body = {"status": "ok", "role": gateway.role, "version": gateway.version}
    return raw(orjson.dumps(body), content_type="application/json")


@routes.get("/ready")
async def ready(request: Request) -> HTTPResponse:
    """Ready to serve.

    503 while it is not: the bus is away, or, of `llmlb serve`, its own node has not come up yet.
    """
    if not request.app.ctx.gateway.readiness.ready:
        raise BusDown("the bus is not reachable at the moment")
    return raw(orjson.dumps({"status": "ready"}), content_type="application/json")


@routes.get("/metrics")
async def metrics(request: Request) -> HTTPResponse:
    """Metrics for Prometheus.

    OpenMetrics where the `Accept` header asks for it.
    """
    exposition = request.app.ctx.gateway.metrics
    if exposition is None:
        raise NotFound("this gateway has no metrics")
    body, content_type = await exposition.render(request.headers.get("accept", ""))
    return raw(body, content_type=content_type)
