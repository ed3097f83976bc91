"""A gateway whose users, keys and sessions a test writes."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.identity import ApiKey, KeyLimits, People, Session, Sessions, SigningSecret, User
from llmlb.bus.settings import Settings
from llmlb.router.gateway import auth
from llmlb.router.gateway.app import GatewayServer, build_app
from llmlb.router.gateway.metered import Metered
from llmlb.router.gateway.ports import Gateway
from llmlb.router.identity import signed
from llmlb.router.identity.book import digest_of
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.limits import Meter
from llmlb.router.identity.office import IDLE_S, Office
from tests.unit.gateway.scripted import Scripted, delta, end

NOW = 1_000_000.0
SECRET = b"s" * 32
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ADMIN = User(user_id="a" * 16, name="alice", role="admin", password="", epoch=0, created_at=0)
VIEWER = User(user_id="b" * 16, name="bob", role="viewer", password="", epoch=0, created_at=0)
STRANGE = User(user_id="c" * 16, name="carol", role="auditor", password="", epoch=0, created_at=0)


class Known(Directory):
    """A directory whose bucket was read: what a test puts into it."""

    def __init__(self) -> None:
        self.now = NOW
        bus = Bus(Settings.load({}, embedded_bus=False), "test")
        super().__init__(bus, lambda: self.now)
        self.mirror.loaded = True

    def put(self, key: str, record: Message | None) -> None:
        self._on_change(key, None if record is None else codec.encode(record))

    def put_users(self, *users: User) -> None:
        self.put(subjects.PEOPLE_KEY, People(users=users))
        self.put(subjects.SECRET_KEY, SigningSecret(secret=SECRET.hex()))

    def put_key(self, *permissions: str, expires_at: float | None = None, **limits: int) -> str:
        text = f"sk_{uuid.uuid4().hex}"
        digest = digest_of(text)
        key = ApiKey(
            key_id=digest[:12],
            digest=digest,
            name="k",
            permissions=permissions,
            created_at=0,
            expires_at=expires_at,
            limits=KeyLimits(**limits),
        )
        self.put(subjects.api_key_key(key.key_id), key)
        return text

    def paying_key(self, **limits: int) -> tuple[str, Meter, list[int]]:
        """Id of a new key with limits, its meter, and the tokens it is charged, one entry a time."""
        key = self.key(self.put_key("inference", **limits))
        assert key is not None
        meter = self.meter(key.key_id)
        assert meter is not None
        paid: list[int] = []
        meter.used = lambda tokens, now: paid.append(tokens)  # type: ignore[method-assign]
        return key.key_id, meter, paid

    def put_session(self, user: User, *, left_s: float = IDLE_S) -> dict[str, str]:
        """The headers of a session."""
        sid = uuid.uuid4().hex
        session = Session(session_id=sid, epoch=user.epoch, created_at=NOW, expires_at=NOW + left_s)
        self.put(subjects.sessions_key(user.user_id), Sessions(user_id=user.user_id, sessions=(session,)))
        claims = signed.Claims(
            user_id=user.user_id, session_id=sid, epoch=user.epoch, issued_at=NOW - 60, expires_at=NOW + left_s
        )
        return {
            "Cookie": f"{auth.SESSION_COOKIE}={signed.sign(claims, SECRET)}",
            auth.CSRF_HEADER: signed.csrf_token(sid, SECRET),
        }


class Rig:
    def __init__(self, role: str, home: Path, **settings: Any) -> None:
        self.directory = Known()
        self.scripted = Scripted(lambda request: [delta("a"), end()])
        self.office = Office(self.directory, time.monotonic)
        self.app = build_app(
            Gateway(
                role=cast(Any, role),
                settings=Settings.load({}, home=home, **settings),
                version="0",
                inference=Metered(self.scripted, self.directory),
                models=self.scripted,
                readiness=self.scripted,
                router_ops=None,
                node_ops=None,
                node_id=None,
                identity=self.office,
            )
        )


@contextlib.asynccontextmanager
async def rig_of(home: Path, role: str = "router", **settings: Any) -> AsyncIterator[tuple[Rig, httpx.AsyncClient]]:
    rig = Rig(role, home, **settings)
    server = GatewayServer(rig.app)
    await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as client:
            yield rig, client
    finally:
        await server.stop(0.1)
        rig.office.close()


Started = tuple[Rig, httpx.AsyncClient]


def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's traffic stays on the loopback interface, so here that one counts as another machine."""
    monkeypatch.setattr(auth, "is_loopback", lambda address: False)


class FakeRequest:
    """As much of Sanic's request as the check looks at."""

    def __init__(self, rig: Rig, route: Any, method: str, peer: str, headers: dict[str, str]) -> None:
        self.app, self.route, self.method = rig.app, route, method
        self.ctx = SimpleNamespace()
        self.transport = SimpleNamespace(get_extra_info=lambda name: (peer, 1))
        self.headers = {key.lower(): value for key, value in headers.items()}
        self.cookies = dict(part.split("=", 1) for part in self.headers.get("cookie", "").split("; ") if part)


def verdict(rig: Rig, route: Any, method: str, peer: str, headers: dict[str, str]) -> int:
    try:
        auth.check(cast(Any, FakeRequest(rig, route, method, peer, headers)))
    except auth.Unauthenticated:
        return 401
    except auth.Forbidden:
        return 403
    return 200
