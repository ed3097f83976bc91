"""Who may: checked in memory before any handler, a few microseconds a request.

A program on the same machine needs no credentials until the first user exists, every other peer always does.
Credentials are an API key (``Authorization: Bearer``, ``x-api-key``; a page's script, which can set no headers for a
WebSocket, offers the subprotocol ``llmlb.key.<key>``) or a session's cookie; with the cookie, whatever changes
something needs ``X-CSRF-Token`` too.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass
from typing import Any

from sanic import Request

from llmlb.bus.errors import BusDown, Forbidden, RateLimited, Unauthenticated
from llmlb.bus.messages.identity import ApiKey, User
from llmlb.router.gateway import cors
from llmlb.router.gateway.peers import (
    by_trusted_proxy,
    is_foreign_page,
    is_forwarded,
    is_loopback,
    is_own_page,
    peer_of,
)
from llmlb.router.gateway.permissions import Rule, rule_of
from llmlb.router.gateway.ports import Gateway
from llmlb.router.identity.limits import Meter
from llmlb.router.identity.signed import Claims, csrf_token

SESSION_COOKIE = "llmlb_session"
CSRF_COOKIE = "llmlb_csrf"
CSRF_HEADER = "x-csrf-token"
KEY_PROTOCOL = "llmlb.key."
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

NO_CREDENTIALS = (
    "this gateway needs an API key or a login; only programs on the same machine may use it without, until the first "
    "user exists; LLMLB_AUTH=off opens it to every peer of a trusted network"
)
BAD_KEY = "this API key is not valid here: it is unknown, was revoked, or has expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. ``key`` or ``user`` is set, or neither: a program on this machine, or anybody while auth is off."""

    key: ApiKey | None = None
    user: User | None = None
    claims: Claims | None = None
    """Of the user's session."""

    @property
    def name(self) -> str:
        """For records: who did it."""
        return self.user.name if self.user is not None else f"key:{self.key.name}" if self.key is not None else "local"

    def may(self, rule: Rule) -> bool:
        if self.key is not None:
            return rule.anyone or rule.permission in self.key.permissions
        if self.user is not None:
            return self.user.role == "admin" or (self.user.role == "viewer" and rule.viewer)
        return True


LOCAL = Principal()


def key_text(request: Request) -> str:
    """The API key that was sent, or nothing."""
    headers = request.headers
    given = headers.get("authorization")
    if given is not None and given[:7].lower() == "bearer ":
        return str(given[7:].strip())
    given = headers.get("x-api-key")
    if not given and str(headers.get("upgrade", "")).lower() == "websocket":
        offered = (part.strip() for part in str(headers.get("sec-websocket-protocol", "")).split(","))
        given = next((part.removeprefix(KEY_PROTOCOL) for part in offered if part.startswith(KEY_PROTOCOL)), None)
    return str(given or "")


def check(request: Request) -> None:
    """Raises Unauthenticated, Forbidden, RateLimited, or BusDown while it is not known whether there are users."""
    rule = rule_of(request)
    gateway: Gateway = request.app.ctx.gateway
    if rule.public or gateway.settings.auth == "off":
        request.ctx.principal = LOCAL
        if not rule.public and request.method not in SAFE and "origin" in request.headers:
            _refuse_strange_pages(request, gateway)
        return
    principal = _known(request, gateway) or _found(request, gateway)
    request.ctx.principal = principal
    if not principal.may(rule):
        needed = f" the permission {rule.permission}" if principal.key is not None else " an admin"
        raise Forbidden(f"this needs{needed}; what was sent does not allow it")
    if principal.key is not None and rule.permission == "inference" and gateway.identity is not None:
        meter = gateway.identity.directory.meter(principal.key.key_id)
        if meter is not None and request.method == "POST":
            _admit(request, meter)


@dataclass(frozen=True, slots=True)
class _Before:
    """Who it was that sent a head over a connection. Holds for the same head while nothing else changed."""

    head: object
    gateway: Gateway
    version: int
    known: bool
    principal: Principal


def _known(request: Request, gateway: Gateway) -> Principal | None:
    """Who sent the last request of this connection, if this one has the same head. None: not known by that.

    Whoever it is, is so by the connection's peer, the head, the settings and the directory, and by nothing else; but
    for a session, which has a time of its own.
    """
    connection = _connection(request)
    before: _Before | None = None if connection is None else getattr(connection, "before", None)
    identity = gateway.identity
    if before is None or identity is None or before.head is not _head(request):
        return None
    directory = identity.directory
    if before.gateway is not gateway or before.version != directory.version or before.known is not directory.known:
        return None
    key = before.principal.key
    if key is not None:
        if key.expires_at is not None and directory.clock() >= key.expires_at:
            return None
        directory.used(key.key_id)
    return before.principal


def _found(request: Request, gateway: Gateway) -> Principal:
    """As :func:`_who`, remembered for :func:`_known`."""
    directory = None if gateway.identity is None else gateway.identity.directory
    head, connection = _head(request), _connection(request)
    if directory is None or head is None or connection is None:
        return _who(request, gateway)
    version, known = directory.version, directory.known
    principal = _who(request, gateway)
    if principal.claims is None:
        connection.before = _Before(head, gateway, version, known, principal)
    return principal


def _connection(request: Request) -> Any:
    """What is kept with the connection of a request; None: it came over none."""
    info = getattr(request, "conn_info", None)
    return None if info is None else info.ctx


def _head(request: Request) -> object:
    """The same object for the same head, but for the body's length; see :func:`llmlb.router.gateway.http_head`."""
    return getattr(getattr(request, "stream", None), "head", None)


def _who(request: Request, gateway: Gateway) -> Principal:
    directory = None if gateway.identity is None else gateway.identity.directory
    text = key_text(request)
    if text and directory is not None and (key := directory.key(text)) is not None:
        return Principal(key=key)
    if not text and directory is not None and (token := _cookie(request)):
        found = directory.session(token)
        if found is not None:
            _check_csrf(request, found[1], directory.secret)
            return Principal(user=found[0], claims=found[1])
    if _is_local(request, gateway):
        if directory is None or (directory.known and not directory.has_users):
            return _own(request)
        if not directory.known:
            raise BusDown("the bus has not said yet who may use this gateway")
    elif directory is not None and not directory.known and (text or "cookie" in request.headers):
        raise BusDown("the bus has not said yet who may use this gateway")
    raise Unauthenticated(BAD_KEY if text else NO_CREDENTIALS)


def _own(request: Request) -> Principal:
    """Raises Forbidden when a page of another site asks through a browser on this machine."""
    if not is_own_page(request, listed=cors.is_listed(request)):
        raise Forbidden("a page of another site asks, or another name leads here; use the address of this machine")
    return LOCAL


def _refuse_strange_pages(request: Request, gateway: Gateway) -> None:
    """Raises Forbidden: with auth off every peer of the network may, and not the pages that its browsers show.

    A browser sends a page's POST without asking first, so that no CORS header is any help.
    """
    if gateway.settings.cors_origins != "*" and is_foreign_page(request, listed=cors.is_listed(request)):
        raise Forbidden("a page of another site asks; its origin must be listed in LLMLB_CORS_ORIGINS")


def _is_local(request: Request, gateway: Gateway) -> bool:
    """A program on this machine that asks for itself, or for such a one through a trusted proxy."""
    trusted = gateway.settings.trusted_proxies
    if not is_loopback(peer_of(request, trusted)):
        return False
    # A trusted proxy that does not say for whom it asks asks for a stranger.
    named = request.headers.get("x-forwarded-for", "").strip()
    return not is_forwarded(request) or (by_trusted_proxy(request, trusted) and bool(named))


def _cookie(request: Request) -> str:
    return str(request.cookies.get(SESSION_COOKIE) or "") if "cookie" in request.headers else ""


def _check_csrf(request: Request, claims: Claims, secret: bytes) -> None:
    if request.method in SAFE:
        return
    given = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode(), csrf_token(claims.session_id, secret).encode()):
        raise Forbidden(f"with a cookie, changes need the header {CSRF_HEADER}: the value of the cookie {CSRF_COOKIE}")


def _admit(request: Request, meter: Meter) -> None:
    now = time.monotonic()
    request.ctx.meter = meter
    refusal = meter.refusal(now)
    if refusal is not None:
        error = RateLimited(refusal[0])
        error.retry_after_s = max(1, int(refusal[1]) + 1)
        raise error
    meter.begin(now)


def headers_of(request: Request) -> dict[str, str]:
    """What every answer to this request says of its key's limits."""
    meter: Meter | None = getattr(request.ctx, "meter", None)
    return {} if meter is None else meter.headers(time.monotonic())


def principal_of(request: Any) -> Principal:
    """Who asks, once it was checked."""
    principal: Principal = getattr(request.ctx, "principal", LOCAL)
    return principal
