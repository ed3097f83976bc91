"""What a gateway knows of who may, in memory: the bucket ``llmlb-identity``, mirrored. Reading it never waits.

Every gateway process of the cluster mirrors the same bucket, so what one of them changes holds on all of them within a
second; one that has lost the bus goes on with what it knows. design.md puts users and keys into SQLite: a bucket is
what makes several routers and the nodes' own gateways agree without a database that they share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, LlmlbError
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.identity import ApiKey, People, Session, Sessions, SigningSecret, User
from llmlb.bus.tasks import Background
from llmlb.router.identity import signed
from llmlb.router.identity.book import digest_of
from llmlb.router.identity.limits import Meter, unlimited
from llmlb.router.identity.login_sharing import LoginSharing
from llmlb.router.identity.sharing import Sharing
from llmlb.router.mirror import Mirror

log = logging.getLogger("llmlb.router.identity")

USED_EVERY_S = 60.0
FRESH_S = 1.0
"""A login that another gateway made so short ago may not have arrived here yet: its token is enough until then."""
GONE_MAX = 1000
_KEY, _SESSIONS = "key.", "sessions."


class Directory:
    """:meth:`start` once the bus is up. ``clock``: Unix seconds."""

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.mirror = Mirror(bus, subjects.BUCKET_IDENTITY, self._on_change)
        self.version = 0
        """Another one after each change of anything here: what was found out before may not hold any more."""
        self.people = People()
        self._users: dict[str, User] = {}
        self._keys: dict[str, ApiKey] = {}
        """By digest."""
        self._key_ids: dict[str, str] = {}
        """The digest of each key, by its id."""
        self._sessions: dict[str, tuple[str, Session]] = {}
        """User and session, by the session's id."""
        self._secret = b""
        self._unreadable = False
        self._used: dict[str, float] = {}
        """When keys were used, until that is written: as many as there are keys."""
        self._meters: dict[str, Meter] = {}
        self._sharing = Sharing(bus, self._meters)
        self._gone: dict[str, None] = {}
        """Ids of keys and users that were removed, the last GONE_MAX."""
        self.on_gone: Callable[[str], None] = lambda who: None
        """Called with the id of each."""
        self.login_sharing = LoginSharing(bus, self._sharing.gateway_id)
        self._background = Background("identity")

    async def start(self) -> None:
        """Read everything if that is possible within 3 s; from then on follow."""
        await self.mirror.start()
        self._sharing.start()
        self.login_sharing.start()
        self._background.forever(self._write_used, "used")

    async def close(self) -> None:
        await self._sharing.close()
        await self.login_sharing.close()
        await self._background.close()
        await self.mirror.close()

    # What the bucket says

    def _on_change(self, key: str, value: bytes | None) -> None:
        self.version += 1
        try:
            if key == subjects.PEOPLE_KEY:
                self._set_people(value)
            elif key == subjects.SECRET_KEY:
                self._secret = b"" if value is None else bytes.fromhex(codec.decode_as(SigningSecret, value).secret)
            elif key.startswith(_KEY):
                self._set_key(key.removeprefix(_KEY), None if value is None else codec.decode_as(ApiKey, value))
            elif key.startswith(_SESSIONS):
                found = () if value is None else codec.decode_as(Sessions, value).sessions
                self._set_sessions(key.removeprefix(_SESSIONS), found)
        except (BadMessage, ValueError):
            # Not the detail: it holds what was read.
            log.error("identity_record_unreadable key=%s", key)
            self._forget(key)

    def _forget(self, key: str) -> None:
        """What can't be understood allows nothing. Of people, those known before stay."""
        if key == subjects.SECRET_KEY:
            self._secret = b""
        elif key.startswith(_KEY):
            self._set_key(key.removeprefix(_KEY), None)
        elif key.startswith(_SESSIONS):
            self._set_sessions(key.removeprefix(_SESSIONS), ())

    def _set_people(self, value: bytes | None) -> None:
        self._unreadable = True  # until it was read: nobody is let in because a record can't be understood
        self.people = People() if value is None else codec.decode_as(People, value)
        self._unreadable = False
        before, self._users = self._users, {user.user_id: user for user in self.people.users}
        for user_id in before.keys() - self._users.keys():
            self._remember_gone(user_id)
        for user_id in self._gone.keys() & self._users.keys():
            del self._gone[user_id]

    def _set_key(self, key_id: str, key: ApiKey | None) -> None:
        old = self._key_ids.pop(key_id, None)
        if old is not None:
            self._keys.pop(old, None)
        if key is None:
            self._meters.pop(key_id, None)
            self._used.pop(key_id, None)
            if old is not None:
                self._remember_gone(key_id)
            return
        self._gone.pop(key_id, None)
        self._keys[key.digest] = key
        self._key_ids[key_id] = key.digest
        if unlimited(key.limits):
            self._meters.pop(key_id, None)
        else:
            meter = self._meters.get(key_id)
            if meter is None:
                meter = self._meters[key_id] = Meter(lambda: self._sharing.changed(key_id))
            meter.set(key.limits, time.monotonic())

    def _remember_gone(self, who: str) -> None:
        self._gone[who] = None
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self.on_gone(who)

    def is_gone(self, who: str) -> bool:
        """True for a key that was revoked, or a user who was removed, while this ran.

        Not while there are no users: a program on the same machine may send any text as its key then.
        """
        return who in self._gone and self.has_users

    def _set_sessions(self, user_id: str, sessions: tuple[Session, ...]) -> None:
        self._sessions = {sid: entry for sid, entry in self._sessions.items() if entry[0] != user_id}
        for session in sessions:
            self._sessions[session.session_id] = (user_id, session)

    # Who is it

    @property
    def known(self) -> bool:
        """False until the bucket was read once: then nobody knows whether there are users."""
        return self.mirror.loaded

    @property
    def has_users(self) -> bool:
        return bool(self._users) or self._unreadable

    def key(self, text: str) -> ApiKey | None:
        """The API key that somebody showed, unless it is unknown, revoked or expired.

        Looked up by its digest: how long that takes says nothing about the keys there are.
        """
        key = self._keys.get(digest_of(text))
        if key is None or (key.expires_at is not None and self.clock() >= key.expires_at):
            return None
        self.used(key.key_id)
        return key

    def used(self, key_id: str) -> None:
        """This key was used now."""
        self._used[key_id] = self.clock()

    def meter(self, key_id: str) -> Meter | None:
        """What a key with limits has used; None for one without."""
        return self._meters.get(key_id)

    def session(self, token: str) -> tuple[User, signed.Claims] | None:
        """Whose session a token is for, unless it is over."""
        claims = signed.read(token, self._secret) if self._secret else None
        now = self.clock()
        if claims is None or claims.expires_at <= now:
            return None
        user = self._users.get(claims.user_id)
        if user is None or user.epoch != claims.epoch:
            return None
        kept = self._sessions.get(claims.session_id)
        if kept is None:
            return (user, claims) if 0 <= now - claims.issued_at < FRESH_S else None
        return (user, claims) if kept[0] == user.user_id and kept[1].expires_at > now else None

    @property
    def secret(self) -> bytes:
        """What sessions are signed with; empty before the first login."""
        return self._secret

    def list_keys(self) -> list[ApiKey]:
        """Every key, by name and id; last used as this gateway knows it."""
        found = [
            key.model_copy(
                update={"last_used_at": max(key.last_used_at or 0.0, self._used.get(key.key_id, 0.0)) or None}
            )
            for key in self._keys.values()
        ]
        return sorted(found, key=lambda key: (key.name, key.key_id))

    # Last used

    async def _write_used(self) -> None:
        """Once a minute, so that the request path writes nothing. What fails is tried again a minute later."""
        while True:
            await asyncio.sleep(USED_EVERY_S)
            await self.write_used()

    async def write_used(self) -> None:
        """Write when keys were used, where that was not written yet."""
        for key_id, used_at in list(self._used.items()):
            try:
                await self.mirror.edit(subjects.api_key_key(key_id), lambda old, at=used_at: _later(old, at))  # type: ignore[misc]
            except BadMessage:
                self._used.pop(key_id, None)  # a newer version's: it knows better
                continue
            except LlmlbError as error:
                log.warning("key_use_not_written key=%s error=%r", key_id, error.message)
                return
            if self._used.get(key_id) == used_at:
                del self._used[key_id]


def _later(old: bytes | None, used_at: float) -> bytes | None:
    """The key with that last use; the same bytes when it is gone, or was used later."""
    if old is None:
        return None
    key = codec.decode_as(ApiKey, old)
    if (key.last_used_at or 0.0) >= used_at:
        return old
    return stored(key.model_copy(update={"last_used_at": used_at}))


def stored(message: Message) -> bytes:
    """A record with its time, as the bucket keeps it."""
    return codec.encode(message.model_copy(update={"sent_at": time.time()}))
