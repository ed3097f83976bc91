"""Changes of the users and invitations. Pure: the record before in, the one after out.

Users and invitations are one record, so that each of these is atomic: two admins that remove each other can't both
succeed, and an invitation makes one user however many use it at once.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from llmlb.bus.errors import Conflict, InvalidRequest, NotFound
from llmlb.bus.messages.identity import Invitation, People, User

ROLES = ("admin", "viewer")
MOST_USERS = 1000
MOST_INVITATIONS = 200
INVITATION = "invite-"
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


def checked_name(name: str) -> str:
    """The name of a user or key, if it may be one. Raises InvalidRequest."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest("name: must be 1 to 64 of the characters A-Z a-z 0-9 . _ @ -", param="name")
    return name


def checked_role(role: str) -> str:
    """Raises InvalidRequest."""
    if role not in ROLES:
        raise InvalidRequest("role: must be admin or viewer", param="role")
    return role


def digest_of(secret: str) -> str:
    """What is kept of a code or key: its sha256, 64 hex digits. No salt: there is nothing to guess in 256 bits."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def new_code() -> str:
    """The code of an invitation: 256 bits of chance."""
    return INVITATION + secrets.token_urlsafe(32)


def find(people: People, name: str) -> User | None:
    return next((user for user in people.users if user.name == name), None)


def _known(people: People, name: str) -> User:
    user = find(people, name)
    if user is None:
        raise NotFound(f"there is no user '{name[:64]}'", param="name")
    return user


def _replace(people: People, user: User, **update: object) -> People:
    after = user.model_copy(update=update)
    return people.model_copy(update={"users": tuple(after if one is user else one for one in people.users)})


def _still_an_admin(people: People) -> People:
    if not any(user.role == "admin" for user in people.users):
        raise Conflict("the last admin can't be removed or made a viewer; make another admin first")
    return people


def add(people: People, name: str, role: str, password: str, now: float) -> People:
    """With one more user. ``password``: hashed. Raises InvalidRequest, Conflict (name taken, too many)."""
    checked_name(name)
    checked_role(role)
    if find(people, name) is not None:
        raise Conflict(f"there is a user '{name}' already")
    if len(people.users) >= MOST_USERS:
        raise Conflict(f"there are {MOST_USERS} users already")
    if not people.users and role != "admin":
        raise InvalidRequest("role: the first user must be an admin", param="role")
    user = User(user_id=secrets.token_hex(8), name=name, role=role, password=password, epoch=0, created_at=now)
    return people.model_copy(update={"users": (*people.users, user)})


def remove(people: People, name: str) -> People:
    """Without that user, whose sessions end with it. Raises NotFound, Conflict (the last admin)."""
    gone = _known(people, name)
    users = tuple(user for user in people.users if user is not gone)
    return _still_an_admin(people.model_copy(update={"users": users}))


def set_role(people: People, name: str, role: str) -> People:
    """Raises NotFound, InvalidRequest, Conflict (the last admin)."""
    return _still_an_admin(_replace(people, _known(people, name), role=checked_role(role)))


def set_password(people: People, name: str, password: str) -> People:
    """Another password (hashed); every session of the user ends. Raises NotFound."""
    user = _known(people, name)
    return _replace(people, user, password=password, epoch=user.epoch + 1)


def invite(people: People, digest: str, role: str, by: str, expires_at: float, now: float) -> People:
    """With one more invitation; those that expired are dropped. Raises InvalidRequest, Conflict (too many)."""
    checked_role(role)
    kept = tuple(one for one in people.invitations if one.expires_at > now)
    if len(kept) >= MOST_INVITATIONS:
        raise Conflict(f"there are {MOST_INVITATIONS} invitations already; they end when they expire or are used")
    new = Invitation(digest=digest, role=role, created_by=by, expires_at=expires_at)
    return people.model_copy(update={"invitations": (*kept, new)})


def invitation(people: People, code: str, now: float) -> Invitation:
    """The invitation of a code. Raises InvalidRequest, with the same words for an unknown, used and expired one."""
    digest = digest_of(code)
    for one in people.invitations:
        if one.digest == digest and one.expires_at > now:
            return one
    raise InvalidRequest("code: this invitation is not valid, was used, or has expired", param="code")


def redeem(people: People, code: str, name: str, password: str, now: float) -> People:
    """The user that an invitation is for, instead of the invitation. Raises as :func:`invitation` and :func:`add`."""
    used = invitation(people, code, now)
    left = tuple(one for one in people.invitations if one is not used)
    return add(people.model_copy(update={"invitations": left}), name, used.role, password, now)
