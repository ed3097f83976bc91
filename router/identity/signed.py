"""The token of a session: a JWT with one fixed algorithm, HS256. Pure.

Written by hand, because one algorithm and four claims are forty lines, and every known hole of JWT libraries is in what
is not here: other algorithms, ``none``, keys named by the token. Source: RFC 7515, RFC 7519.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

import orjson

_HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
MAX_TOKEN = 2048
"""Characters; a longer one is none of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says: a user's session, and how long the cookie is good for. Times are Unix seconds."""

    user_id: str
    session_id: str
    epoch: int
    issued_at: float
    expires_at: float


def _mac(secret: bytes, text: str) -> bytes:
    return hmac.digest(secret, text.encode(), hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(claims: Claims, secret: bytes) -> str:
    """The token."""
    body = {
        "sub": claims.user_id,
        "sid": claims.session_id,
        "epoch": claims.epoch,
        "iat": claims.issued_at,
        "exp": claims.expires_at,
    }
    signed = f"{_HEADER}.{_text(orjson.dumps(body))}"
    return f"{signed}.{_text(_mac(secret, signed))}"


def read(token: str, secret: bytes) -> Claims | None:
    """What a token says, or None for one that was not signed with this secret. Whether it is over is not looked at."""
    if len(token) > MAX_TOKEN or not token.isascii():
        return None
    signed, _, mac = token.rpartition(".")
    header, _, body = signed.partition(".")
    if not hmac.compare_digest(_text(_mac(secret, signed)).encode(), mac.encode()) or header != _HEADER:
        return None
    try:
        said = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return Claims(
            user_id=str(said["sub"]),
            session_id=str(said["sid"]),
            epoch=int(said["epoch"]),
            issued_at=float(said["iat"]),
            expires_at=float(said["exp"]),
        )
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None


def csrf_token(session_id: str, secret: bytes) -> str:
    """What a page sends in ``X-CSRF-Token`` beside the cookie: bound to the session, so another one's does not fit."""
    return _text(_mac(secret, f"csrf:{session_id}"))
