"""Who may: users, invitations, sessions and API keys as the bucket llmlb-identity keeps them. Hashes, never a secret.

The one exception is the signing secret of sessions: whoever reads the bucket can sign some. Who may be on the bus at
all is up to the bus's own credentials.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message, Part


class User(Part):
    """One user. A role that this version does not know allows nothing."""

    user_id: str = Field(description="made anew for each user, 16 hex digits: a name may be given again")
    name: str = Field(description="what the user logs in with")
    role: str = Field(description="admin or viewer")
    password: str = Field(description="scrypt$log2(N)$r$p$salt$hash, both in base64; empty: no login")
    epoch: int = Field(ge=0, description="raised to end every session of the user")
    created_at: float = Field(description="Unix seconds")


class Invitation(Part):
    """Whoever has the code becomes a user, once."""

    digest: str = Field(description="sha256 of the code, 64 hex digits")
    role: str = Field(description="of the user it makes")
    created_by: str = Field(description="who made it")
    expires_at: float = Field(description="Unix seconds")


class People(Message):
    """Gateway → bucket llmlb-identity, key people: users and invitations, in one record so that changes are atomic."""

    type: Literal["llmlb.identity.people.v1"] = "llmlb.identity.people.v1"
    users: tuple[User, ...] = Field(default=(), description="by the time they came")
    invitations: tuple[Invitation, ...] = Field(default=(), description="those not used yet")


class Session(Part):
    """One login."""

    session_id: str = Field(description="32 hex digits")
    epoch: int = Field(ge=0, description="the user's at the login; another one now: the session is over")
    created_at: float = Field(description="Unix seconds")
    expires_at: float = Field(description="Unix seconds; moved on while the session is used")


class Sessions(Message):
    """Gateway → bucket llmlb-identity, key sessions.<user>: the logins of one user; what is not here is over."""

    type: Literal["llmlb.identity.sessions.v1"] = "llmlb.identity.sessions.v1"
    user_id: str = Field(description="whose")
    sessions: tuple[Session, ...] = Field(default=(), description="the oldest first")


class SigningSecret(Message):
    """Gateway → bucket llmlb-identity, key secret: what the sessions' tokens are signed with."""

    type: Literal["llmlb.identity.secret.v1"] = "llmlb.identity.secret.v1"
    secret: str = Field(repr=False, description="32 random bytes, in hex")


class KeyLimits(Part):
    """What one API key may use, at all gateways together."""

    requests_per_minute: int | None = Field(default=None, ge=1, description="None: any number")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="of prompts and answers; None: any number")
    concurrency: int | None = Field(default=None, ge=1, description="requests at the same time; None: any number")


class ApiKey(Message):
    """Gateway → bucket llmlb-identity, key key.<id>: one API key. A revoked one is gone."""

    type: Literal["llmlb.identity.api_key.v1"] = "llmlb.identity.api_key.v1"
    key_id: str = Field(description="names it without giving it away: 12 hex digits")
    digest: str = Field(description="sha256 of the key, 64 hex digits")
    name: str = Field(description="what it is for, for people")
    permissions: tuple[str, ...] = Field(default=(), description="what it allows; unknown ones allow nothing")
    created_by: str = Field(default="", description="who made it")
    created_at: float = Field(description="Unix seconds")
    expires_at: float | None = Field(default=None, description="Unix seconds; None: never")
    last_used_at: float | None = Field(default=None, description="Unix seconds, some minutes late; None: not yet")
    limits: KeyLimits = Field(default=KeyLimits(), description="what it may use")


class KeyUse(Part):
    """What one gateway knows of the use of one API key with limits."""

    key_id: str = Field(description="the key")
    requests: int = Field(default=0, ge=0, description="let in by the sender since it said so last")
    tokens: int = Field(default=0, ge=0, description="of answers that ended at the sender since it said so last")
    running: int = Field(default=0, ge=0, description="under way at the sender now")
    requests_left: float | None = Field(default=None, description="of this minute, at all gateways; None: no limit")
    tokens_left: float | None = Field(default=None, description="the same in tokens; below 0: overdrawn")


class KeysUsed(Message):
    """Gateway → every gateway, soon after a key with limits was used, and each second while it is.

    Without an answer; what is lost makes a key get a little more.
    """

    type: Literal["llmlb.identity.used.v1"] = "llmlb.identity.used.v1"
    gateway_id: str = Field(description="the gateway process that says so")
    asks: bool = Field(default=False, description="the sender is new, or was away: all are to say what they know")
    keys: tuple[KeyUse, ...] = Field(default=(), description="those whose use changed, or is under way")


class LoginTried(Message):
    """Gateway → every gateway, at once when somebody tries to log in, and when it is known how that went.

    Without an answer; what is lost makes guessing a little faster.
    """

    type: Literal["llmlb.identity.login_tried.v1"] = "llmlb.identity.login_tried.v1"
    gateway_id: str = Field(description="the gateway process that says so")
    name: str = Field(
        default="", max_length=64, description="digest of the user's name; empty: an invitation was tried"
    )
    peer: str = Field(max_length=128, description="address or network that the attempt came from")
    outcome: Literal["began", "failed", "succeeded"] = Field(description="what happened to the attempt")
