"""The way in of every request: its id, and who may; before its body is read, so that strangers can't fill memory."""

from __future__ import annotations

import re
from typing import Any

from sanic import Request

from llmlb.bus.logs import request_id_var
from llmlb.router.gateway import auth
from llmlb.router.gateway.permissions import rule_of
from llmlb.router.ids import new_id

STRANGERS_BODY_MAX = 64 * 1024
"""Bytes of a body on routes that everybody may use."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NOBODY = ("OPTIONS", "NONE")
"""Browsers ask OPTIONS without credentials, and it tells nothing. NONE is Sanic's for what could not be read."""


def enter(request: Request) -> None:
    """Once a request. Raises what :func:`auth.check` does."""
    ctx = request.ctx
    if hasattr(ctx, "entered"):
        return
    ctx.entered = True
    given = request.headers.get("x-request-id")
    ctx.request_id = given if given is not None and _REQUEST_ID.fullmatch(given) else new_id()
    request_id_var.set(ctx.request_id)
    if request.method not in _NOBODY:
        auth.check(request)


class GatewayRequest(Request[Any, Any]):
    """Sanic's, whose body is read by :meth:`StrictHttp.whole_body` once it is known who asks."""

    async def receive_body(self) -> None:
        """Called by Sanic before the handler. Raises as :func:`enter`, and HttpRefused."""
        if self.body or self.stream is None:
            return
        enter(self)
        most = self.app.config.REQUEST_MAX_SIZE
        stream: Any = self.stream
        self.body = await stream.whole_body(min(most, STRANGERS_BODY_MAX) if rule_of(self).public else most)
