"""The two cookies of a login: the session's token, which no script can read, and the CSRF token, which a page sends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sanic import Request
from sanic.response import HTTPResponse

from llmlb.bus.errors import LlmlbError
from llmlb.router.gateway.auth import CSRF_COOKIE, SESSION_COOKIE, principal_of
from llmlb.router.gateway.peers import is_https
from llmlb.router.gateway.ports import Gateway
from llmlb.router.identity.office import IDLE_S, RENEW_S, Login

log = logging.getLogger("llmlb.router.gateway.cookies")

RENEW_WITHIN_S = 1.0


def set_login(request: Request, response: HTTPResponse, login: Login) -> None:
    """Give the session to the browser. Strict: no other site's page sends the cookies along."""
    secure = is_https(request)
    for name, value, hidden in ((SESSION_COOKIE, login.token, True), (CSRF_COOKIE, login.csrf, False)):
        response.add_cookie(
            name, value, path="/", httponly=hidden, secure=secure, samesite="Strict", max_age=int(IDLE_S)
        )


def clear_login(request: Request, response: HTTPResponse) -> None:
    """Take the session from the browser."""
    for name, hidden in ((SESSION_COOKIE, True), (CSRF_COOKIE, False)):
        response.add_cookie(name, "", path="/", httponly=hidden, secure=is_https(request), samesite="Strict", max_age=0)


async def renew(request: Request, response: Any) -> None:
    """A session in use goes on: at most once an hour its end is moved. What fails is tried with the next request."""
    claims, user = principal_of(request).claims, principal_of(request).user
    gateway: Gateway = request.app.ctx.gateway
    if claims is None or user is None or gateway.identity is None:
        return
    if claims.expires_at - gateway.identity.directory.clock() > IDLE_S - RENEW_S:
        return
    try:
        async with asyncio.timeout(RENEW_WITHIN_S):
            login = await gateway.identity.renew(user, claims.session_id)
    except (LlmlbError, TimeoutError) as error:
        log.warning("session_not_renewed error=%r", type(error).__name__)
        return
    if login is not None:
        set_login(request, response, login)
