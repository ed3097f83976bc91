"""What admins and users do: users, invitations, logins, API keys. Each change is one write that the bus arbitrates.

Every method raises BusDown, DeadlineExceeded or Conflict when the bucket can't be written.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from llmlb.bus import codec, subjects
from llmlb.bus.errors import Conflict, InvalidRequest, NotFound, RateLimited, Unauthenticated
from llmlb.bus.messages.identity import ApiKey, KeyLimits, People, Session, Sessions, SigningSecret, User
from llmlb.router.identity import book, passwords, signed
from llmlb.router.identity.directory import Directory, stored
from llmlb.router.identity.throttle import Logins, counted_as

log = logging.getLogger("llmlb.router.identity")

IDLE_S = 7 * 86400.0
"""A session ends when it was not used for so long."""
RENEW_S = 3600.0
"""A session in use is moved on at most so often."""
MOST_SESSIONS = 20
"""Of one user; the oldest one ends."""
MOST_KEYS = 1000
KEY = "sk_"
PERMISSIONS = ("inference", "models.read", "registry", "nodes", "logs", "metrics", "users")
KEY_DAYS = (3, 7, 21, 70)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A session, and what its cookies hold."""

    user: User
    token: str
    csrf: str
    expires_at: float


class Office:
    """Changes who may. ``monotonic`` is the clock of the throttling."""

    def __init__(self, directory: Directory, monotonic: Callable[[], float]) -> None:
        self._directory = directory
        self._monotonic = monotonic
        self._logins = Logins()
        directory.login_sharing.on_heard = lambda outcome, name, peer: self._logins.heard(
            outcome, name, peer, self._monotonic()
        )
        self._hasher = passwords.Hasher()

    def close(self) -> None:
        self._hasher.close()

    @property
    def directory(self) -> Directory:
        return self._directory

    # Users

    async def _edit(self, change: Callable[[People], People]) -> People:
        refused: list[Conflict] = []

        def edited(old: bytes | None) -> bytes | None:
            refused.clear()
            before = People() if old is None else codec.decode_as(People, old)
            try:
                after = change(before)
            except Conflict as error:  # to the mirror that would mean: somebody else wrote first, try again
                refused.append(error)
                return old
            return old if after == before else stored(after)

        written = await self._directory.mirror.edit(subjects.PEOPLE_KEY, edited)
        if refused:
            raise refused[0]
        return People() if written is None else codec.decode_as(People, written)

    async def add(self, name: str, role: str, password: str) -> User:
        """A new user; the first one must be an admin. Raises InvalidRequest, Conflict."""
        now = self._directory.clock()
        book.add(self._directory.people, name, role, "", now)  # what is wrong is said before the slow hash
        hashed = await self._hasher.hash(passwords.checked(password))
        people = await self._edit(lambda before: book.add(before, name, role, hashed, now))
        log.info("user_added name=%s role=%s", name, role)
        return self._found(people, name)

    async def remove(self, name: str) -> None:
        """Their sessions end at once. Raises NotFound, Conflict (the last admin)."""
        user = book.find(self._directory.people, name)
        await self._edit(lambda before: book.remove(before, name))
        if user is not None:
            await self._directory.mirror.edit(subjects.sessions_key(user.user_id), lambda _: None)
        log.info("user_removed name=%s", name)

    async def set_role(self, name: str, role: str) -> User:
        """Raises NotFound, InvalidRequest, Conflict (the last admin)."""
        people = await self._edit(lambda before: book.set_role(before, name, role))
        log.info("user_role_set name=%s role=%s", name, role)
        return self._found(people, name)

    async def set_password(self, name: str, password: str) -> User:
        """Every session of the user ends. Raises NotFound, InvalidRequest."""
        if book.find(self._directory.people, name) is None:
            raise NotFound(f"there is no user '{name[:64]}'", param="name")
        hashed = await self._hasher.hash(passwords.checked(password))
        people = await self._edit(lambda before: book.set_password(before, name, hashed))
        log.info("user_password_set name=%s", name)
        return self._found(people, name)

    @staticmethod
    def _found(people: People, name: str) -> User:
        user = book.find(people, name)
        if user is None:
            raise Conflict(f"the user '{name}' was removed meanwhile")
        return user

    # Invitations

    async def invite(self, role: str, by: str, expires_in_s: float) -> tuple[str, float]:
        """A code that is shown this once, and when it expires. Raises InvalidRequest, Conflict."""
        code, now = book.new_code(), self._directory.clock()
        digest, until = book.digest_of(code), now + expires_in_s
        await self._edit(lambda before: book.invite(before, digest, role, by, until, now))
        log.info("invitation_made role=%s by=%s", role, by)
        return code, until

    async def register(self, code: str, name: str, password: str, peer: str) -> User:
        """A user by invitation, once. Raises InvalidRequest, Conflict, RateLimited."""
        self._throttled("", peer)
        now = self._directory.clock()
        book.redeem(self._directory.people, code, name, "", now)
        hashed = await self._hasher.hash(passwords.checked(password))
        people = await self._edit(lambda before: book.redeem(before, code, name, hashed, now))
        self._tried("", peer, right=True)
        log.info("user_registered name=%s", name)
        return self._found(people, name)

    # Logins

    def _throttled(self, name: str, peer: str) -> None:
        wait_s = self._logins.begin(name, peer, self._monotonic())
        if wait_s > 0:
            error = RateLimited("too many attempts failed; wait before the next one")
            error.retry_after_s = int(wait_s) + 1
            raise error
        self._directory.login_sharing.tell("began", *counted_as(name, peer))

    def _tried(self, name: str, peer: str, *, right: bool) -> None:
        """How an attempt that began went."""
        if right:
            self._logins.succeeded(name, peer)
        else:
            self._logins.failed(name, peer, self._monotonic())
        self._directory.login_sharing.tell("succeeded" if right else "failed", *counted_as(name, peer))

    async def login(self, name: str, password: str, peer: str) -> Login:
        """A new session. Raises Unauthenticated with the same words whatever is wrong, RateLimited."""
        self._throttled(name, peer)
        user = book.find(self._directory.people, name)
        if not await self._hasher.matches(password, None if user is None else user.password) or user is None:
            self._tried(name, peer, right=False)
            log.warning("login_failed peer=%s", peer)
            raise Unauthenticated("the name or the password is wrong")
        self._tried(name, peer, right=True)
        secret = await self._secret()
        now = self._directory.clock()
        session = Session(session_id=secrets.token_hex(16), epoch=user.epoch, created_at=now, expires_at=now + IDLE_S)
        await self._edit_sessions(user, lambda before: (*before, session)[-MOST_SESSIONS:])
        log.info("logged_in name=%s", user.name)
        return self._login(user, session.session_id, session.expires_at, secret)

    async def change_password(self, user: User, old: str, new: str, peer: str) -> None:
        """A user's own; every session ends. Raises Unauthenticated, InvalidRequest, RateLimited."""
        passwords.checked(new)
        self._throttled(user.name, peer)
        if not await self._hasher.matches(old, user.password):
            self._tried(user.name, peer, right=False)
            raise Unauthenticated("the old password is wrong")
        self._tried(user.name, peer, right=True)
        await self.set_password(user.name, new)

    async def _secret(self) -> bytes:
        if not self._directory.secret:
            made = stored(SigningSecret(secret=secrets.token_hex(32)))
            kept = await self._directory.mirror.edit(subjects.SECRET_KEY, lambda old: old or made)
            return bytes.fromhex(codec.decode_as(SigningSecret, kept or made).secret)
        return self._directory.secret

    def _login(self, user: User, session_id: str, expires_at: float, secret: bytes) -> Login:
        claims = signed.Claims(
            user_id=user.user_id,
            session_id=session_id,
            epoch=user.epoch,
            issued_at=self._directory.clock(),
            expires_at=expires_at,
        )
        csrf = signed.csrf_token(session_id, secret)
        return Login(user=user, token=signed.sign(claims, secret), csrf=csrf, expires_at=expires_at)

    async def _edit_sessions(
        self, user: User, change: Callable[[tuple[Session, ...]], tuple[Session, ...]]
    ) -> tuple[Session, ...]:
        """Change the sessions of a user; those that are over are dropped."""
        now = self._directory.clock()

        def edited(old: bytes | None) -> bytes | None:
            before = () if old is None else codec.decode_as(Sessions, old).sessions
            live = tuple(one for one in before if one.expires_at > now and one.epoch == user.epoch)
            after = change(live)
            return old if after == before else stored(Sessions(user_id=user.user_id, sessions=after))

        written = await self._directory.mirror.edit(subjects.sessions_key(user.user_id), edited)
        return () if written is None else codec.decode_as(Sessions, written).sessions

    async def renew(self, user: User, session_id: str) -> Login | None:
        """A session in use goes on; None when it is over."""
        until = self._directory.clock() + IDLE_S

        def moved(before: tuple[Session, ...]) -> tuple[Session, ...]:
            return tuple(
                one.model_copy(update={"expires_at": until}) if one.session_id == session_id else one for one in before
            )

        after = await self._edit_sessions(user, moved)
        if not any(one.session_id == session_id for one in after):
            return None
        return self._login(user, session_id, until, self._directory.secret)

    async def logout(self, user: User, session_id: str) -> None:
        """That session ends on every gateway."""
        await self._edit_sessions(user, lambda before: tuple(one for one in before if one.session_id != session_id))
        log.info("logged_out name=%s", user.name)

    # API keys

    async def make_key(
        self, name: str, permissions: tuple[str, ...], days: int | None, limits: KeyLimits, by: str
    ) -> tuple[str, ApiKey]:
        """A new key, which is shown this once, and its record. Raises InvalidRequest, Conflict (too many)."""
        book.checked_name(name)
        unknown = [permission for permission in permissions if permission not in PERMISSIONS]
        if unknown or not permissions:
            raise InvalidRequest("permissions: one or more of " + ", ".join(PERMISSIONS), param="permissions")
        if days is not None and days not in KEY_DAYS:
            raise InvalidRequest("expires_in_days: 3, 7, 21 or 70, or left out for never", param="expires_in_days")
        if len(self._directory.list_keys()) >= MOST_KEYS:
            raise Conflict(f"there are {MOST_KEYS} API keys already; revoke some")
        text, now = KEY + secrets.token_urlsafe(32), self._directory.clock()
        digest = book.digest_of(text)
        key = ApiKey(
            key_id=digest[:12],
            digest=digest,
            name=name,
            permissions=tuple(one for one in PERMISSIONS if one in permissions),
            created_by=by,
            created_at=now,
            expires_at=None if days is None else now + days * 86400.0,
            limits=limits,
        )
        data = stored(key)
        await self._directory.mirror.edit(subjects.api_key_key(key.key_id), lambda _: data)
        log.info("api_key_made key=%s name=%s permissions=%s", key.key_id, name, ",".join(key.permissions))
        return text, key

    async def revoke_key(self, wanted: str) -> ApiKey:
        """Revoke the key of that id, beginning of an id, or name. Raises NotFound, InvalidRequest (several)."""
        keys = self._directory.list_keys()
        found = [key for key in keys if key.key_id == wanted] or [key for key in keys if key.name == wanted]
        found = found or [key for key in keys if len(wanted) >= 4 and key.key_id.startswith(wanted)]
        if not found:
            raise NotFound(f"there is no API key '{wanted[:64]}'", param="key")
        if len(found) > 1:
            raise InvalidRequest(f"'{wanted[:64]}' stands for {len(found)} API keys; give the id", param="key")
        await self._directory.mirror.edit(subjects.api_key_key(found[0].key_id), lambda _: None)
        log.info("api_key_revoked key=%s name=%s", found[0].key_id, found[0].name)
        return found[0]
