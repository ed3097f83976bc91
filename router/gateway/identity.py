"""/v0/auth, /v0/users and /v0/keys: logins, users, invitations, API keys. No answer holds a hash or an old secret."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import Forbidden, NotFound
from llmlb.bus.messages.identity import ApiKey, KeyLimits, User
from llmlb.router.gateway import cors
from llmlb.router.gateway.auth import Principal, principal_of
from llmlb.router.gateway.cookies import clear_login, set_login
from llmlb.router.gateway.openai_schema import Number, parse
from llmlb.router.gateway.peers import is_foreign_page, peer_of
from llmlb.router.identity.office import PERMISSIONS, Office
from llmlb.router.identity.passwords import MAX_LENGTH
from llmlb.router.identity.signed import csrf_token

MAX_TEXT = 128
MAX_LIMIT = 10**9
WEEK_S = 7 * 86400.0
VIEWER = ("inference", "models.read", "nodes", "logs", "metrics")
"""What viewers may, as permissions; of nodes only to see them."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoginBody(_Body, json_schema_extra={"examples": [{"name": "alice", "password": "correct horse"}]}):
    """POST /v0/auth/login."""

    name: StrictStr = Field(max_length=MAX_TEXT, description="of the user")
    password: StrictStr = Field(max_length=MAX_LENGTH, description="8 characters at least, for a new one")


class RegisterBody(
    LoginBody, json_schema_extra={"examples": [{"code": "inv_…", "name": "bob", "password": "correct horse"}]}
):
    """POST /v0/auth/register."""

    code: StrictStr = Field(max_length=MAX_TEXT, description="of an invitation")


class OwnPasswordBody(_Body):
    """POST /v0/auth/password."""

    old_password: StrictStr = Field(max_length=MAX_LENGTH, description="the one until now")
    password: StrictStr = Field(max_length=MAX_LENGTH, description="the one from now on")


class UserBody(
    LoginBody, json_schema_extra={"examples": [{"name": "bob", "password": "correct horse", "role": "viewer"}]}
):
    """POST /v0/users."""

    role: StrictStr = Field(default="viewer", max_length=MAX_TEXT, description="admin or viewer")


class RoleBody(_Body, json_schema_extra={"examples": [{"role": "admin"}]}):
    """PUT /v0/users/<name>/role."""

    role: StrictStr = Field(max_length=MAX_TEXT, description="admin or viewer")


class PasswordBody(_Body):
    """PUT /v0/users/<name>/password."""

    password: StrictStr = Field(max_length=MAX_LENGTH, description="the one from now on")


class InvitationBody(_Body, json_schema_extra={"examples": [{"role": "viewer"}]}):
    """POST /v0/users/invitations."""

    role: StrictStr = Field(default="viewer", max_length=MAX_TEXT, description="of the user it makes: admin or viewer")
    expires_in_s: Number = Field(default=WEEK_S, gt=0, le=4 * WEEK_S, description="seconds; four weeks at most")


class KeyBody(
    _Body,
    json_schema_extra={
        "examples": [{"name": "editor", "permissions": ["inference", "models.read"], "expires_in_days": 70}]
    },
):
    """POST /v0/keys."""

    name: StrictStr = Field(max_length=MAX_TEXT, description="what it is for: 1 to 64 of A-Z a-z 0-9 . _ @ -")
    permissions: tuple[StrictStr, ...] = Field(
        default=("inference", "models.read"),
        max_length=16,
        description="of inference, models.read, registry, nodes, logs, metrics, users",
    )
    expires_in_days: StrictInt | None = Field(default=None, description="3, 7, 21 or 70; left out: never")
    requests_per_minute: StrictInt | None = Field(default=None, ge=1, le=MAX_LIMIT, description="left out: any number")
    tokens_per_minute: StrictInt | None = Field(
        default=None, ge=1, le=MAX_LIMIT, description="of prompts and answers; left out: any number"
    )
    concurrency: StrictInt | None = Field(
        default=None, ge=1, le=MAX_LIMIT, description="requests at the same time; left out: any number"
    )

    def limits(self) -> KeyLimits:
        return KeyLimits(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            concurrency=self.concurrency,
        )


routes = Blueprint("identity", url_prefix="/v0")


def _json(body: dict[str, Any], status: int = 200) -> HTTPResponse:
    headers = {"Cache-Control": "no-store"}
    return raw(orjson.dumps(body), status=status, headers=headers, content_type="application/json")


def _office(request: Request) -> Office:
    office: Office | None = request.app.ctx.gateway.identity
    if office is None:
        raise NotFound("this gateway keeps no users")
    return office


def _peer(request: Request) -> str:
    return peer_of(request, request.app.ctx.gateway.settings.trusted_proxies)


def _user(user: User) -> dict[str, Any]:
    return {"name": user.name, "role": user.role, "created_at": user.created_at}


def _key(key: ApiKey) -> dict[str, Any]:
    return key.model_dump(exclude={"type", "sent_at", "digest"})


def _refuse_foreign_pages(request: Request) -> None:
    """Raises Forbidden: a page of another site must not log its visitor in as somebody else. They would not notice."""
    if is_foreign_page(request, listed=cors.is_listed(request)):
        raise Forbidden("a page of another site asks; only this gateway's own pages and listed origins may log in")


# Logins


@routes.post("/auth/login")
async def login(request: Request) -> HTTPResponse:
    """Log in with name and password.

    The answer sets the cookies of a session. Many wrong passwords in a row are slowed down: 429. Pages of other origins
    are refused: 403.
    """
    _refuse_foreign_pages(request)
    body = parse(LoginBody, request.body)
    made = await _office(request).login(body.name, body.password, _peer(request))
    response = _json({**_user(made.user), "csrf_token": made.csrf, "expires_at": made.expires_at})
    set_login(request, response, made)
    return response


@routes.post("/auth/register")
async def register(request: Request) -> HTTPResponse:
    """Become a user, with an invitation's code.

    The code is used up. Log in afterwards. Pages of other origins are refused: 403.
    """
    _refuse_foreign_pages(request)
    body = parse(RegisterBody, request.body)
    made = await _office(request).register(body.code, body.name, body.password, _peer(request))
    return _json(_user(made), status=201)


@routes.post("/auth/logout")
async def logout(request: Request) -> HTTPResponse:
    """End this session, on every gateway."""
    principal = principal_of(request)
    if principal.user is not None and principal.claims is not None:
        await _office(request).logout(principal.user, principal.claims.session_id)
    response = _json({"logged_out": True})
    clear_login(request, response)
    return response


@routes.post("/auth/password")
async def own_password(request: Request) -> HTTPResponse:
    """Change the password of whoever is logged in.

    Every session of the user ends.
    """
    user = principal_of(request).user
    if user is None:
        raise Forbidden("this changes the password of whoever is logged in; nobody is")
    body = parse(OwnPasswordBody, request.body)
    await _office(request).change_password(user, body.old_password, body.password, _peer(request))
    response = _json(_user(user))
    clear_login(request, response)
    return response


def _permissions(principal: Principal) -> tuple[str, ...]:
    if principal.key is not None:
        return principal.key.permissions
    if principal.user is not None and principal.user.role != "admin":
        return VIEWER if principal.user.role == "viewer" else ()
    return PERMISSIONS


@routes.get("/auth/me")
async def me(request: Request) -> HTTPResponse:
    """Who asks, and what they may."""
    principal = principal_of(request)
    user, key, claims = principal.user, principal.key, principal.claims
    body: dict[str, Any] = {
        "kind": "user" if user is not None else "key" if key is not None else "local",
        "name": user.name if user is not None else key.name if key is not None else None,
        "role": None if user is None else user.role,
        "permissions": _permissions(principal),
        "csrf_token": None,
    }
    if claims is not None:
        body["csrf_token"] = csrf_token(claims.session_id, _office(request).directory.secret)
    return _json(body)


# Users


@routes.get("/users")
async def users(request: Request) -> HTTPResponse:
    """All users."""
    found = sorted(_office(request).directory.people.users, key=lambda user: user.name)
    return _json({"users": [_user(user) for user in found]})


@routes.post("/users")
async def add_user(request: Request) -> HTTPResponse:
    """Make a user.

    The first one must be an admin; from then on everybody needs credentials.
    """
    body = parse(UserBody, request.body)
    return _json(_user(await _office(request).add(body.name, body.role, body.password)), status=201)


@routes.post("/users/invitations")
async def invite(request: Request) -> HTTPResponse:
    """Make an invitation.

    Whoever has its code becomes a user, once.
    """
    body = parse(InvitationBody, request.body)
    code, until = await _office(request).invite(body.role, principal_of(request).name, body.expires_in_s)
    return _json({"code": code, "role": body.role, "expires_at": until}, status=201)


@routes.delete("/users/<name:str>")
async def remove_user(request: Request, name: str) -> HTTPResponse:
    """Remove a user.

    Their sessions end at once. The last admin can't be removed: 409.
    """
    await _office(request).remove(unquote(name))
    return _json({"name": unquote(name)})


@routes.put("/users/<name:str>/role")
async def set_role(request: Request, name: str) -> HTTPResponse:
    """Make a user an admin, or a viewer.

    The last admin can't be made a viewer: 409.
    """
    return _json(_user(await _office(request).set_role(unquote(name), parse(RoleBody, request.body).role)))


@routes.put("/users/<name:str>/password")
async def set_password(request: Request, name: str) -> HTTPResponse:
    """Give a user another password.

    Every session of the user ends.
    """
    given = parse(PasswordBody, request.body).password
    return _json(_user(await _office(request).set_password(unquote(name), given)))


# API keys


@routes.get("/keys")
async def keys(request: Request) -> HTTPResponse:
    """All API keys.

    The keys themselves are not stored anywhere.
    """
    return _json({"keys": [_key(key) for key in _office(request).directory.list_keys()]})


@routes.post("/keys")
async def make_key(request: Request) -> HTTPResponse:
    """Make an API key.

    Its text is in this answer and nowhere else.
    """
    body = parse(KeyBody, request.body)
    text, key = await _office(request).make_key(
        body.name, body.permissions, body.expires_in_days, body.limits(), principal_of(request).name
    )
    return _json({"key": text, **_key(key)}, status=201)


@routes.delete("/keys/<key:str>")
async def revoke_key(request: Request, key: str) -> HTTPResponse:
    """Revoke an API key.

    Every gateway refuses it within a second.
    """
    return _json(_key(await _office(request).revoke_key(unquote(key))))
