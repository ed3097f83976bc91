"""Who may, over a real bus: several gateways mirror one bucket, and what one of them changes holds on all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus import subjects
from llmlb.bus.buckets import read_bucket
from llmlb.bus.connection import Bus
from llmlb.bus.errors import (
    BusError,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthenticated,
)
from llmlb.bus.messages.identity import KeyLimits, User
from llmlb.router.identity import passwords
from llmlb.router.identity.book import digest_of
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.office import Office
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer

PASSWORD = "correct horse"
ALL = ("inference", "users")
NONE = KeyLimits()


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 10) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


class Gateways:
    """Gateways on one bus, and its server."""

    def __init__(self, server: NatsServer, make_bus: MakeBus) -> None:
        self.server, self._make_bus = server, make_bus
        self.offices: list[Office] = []
        self.buses: list[Bus] = []

    async def one(self) -> Office:
        bus = await self._make_bus(url=self.server.url)
        office = Office(Directory(bus), lambda: 0.0)
        await office.directory.start()
        self.offices.append(office)
        self.buses.append(bus)
        return office

    async def two(self) -> tuple[Office, Office]:
        return await self.one(), await self.one()

    async def close(self) -> None:
        for office in self.offices:
            await office.directory.close()
            office.close()
        for bus in self.buses:
            await bus.close()


@pytest.fixture
async def gateways(tmp_path: Path, make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateways]:
    """Of a server of their own, since there is one bucket a bus. Passwords are hashed
    fast, and no time passes for the throttling."""
    monkeypatch.setattr(passwords, "LOG2_N", 4)
    it = Gateways(NatsServer(tmp_path / "nats").start(), make_bus)
    yield it
    await it.close()
    it.server.stop()


async def test_a_key_made_on_one_gateway_works_on_all_and_revoked_on_one_on_none(gateways: Gateways) -> None:
    one, two = await gateways.two()
    text, key = await one.make_key("app", ALL, 3, KeyLimits(requests_per_minute=5), "alice")
    assert text.startswith("sk_")
    known = one.directory.key(text)
    assert known is not None
    assert known.key_id == key.key_id
    await until(lambda: two.directory.key(text), "the other gateway knows the key")
    assert two.directory.meter(key.key_id) is not None
    assert (await two.revoke_key("app")).key_id == key.key_id
    assert two.directory.key(text) is None
    await until(lambda: one.directory.key(text) is None, "the key is revoked everywhere")
    assert (one.directory.meter(key.key_id), one.directory.list_keys()) == (None, [])


async def test_the_bucket_holds_no_key_no_password_and_no_code(
    gateways: Gateways, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    office = await gateways.one()
    await office.add("alice", "admin", PASSWORD)
    text, _ = await office.make_key("app", ALL, None, NONE, "alice")
    code, _ = await office.invite("viewer", "alice", 60)
    login = await office.login("alice", PASSWORD, "peer")
    kept = await read_bucket(gateways.buses[0].client, subjects.BUCKET_IDENTITY)
    assert len(kept) == 4
    for secret in (text, PASSWORD, code, login.token, login.csrf):
        assert not any(secret.encode() in (value or b"") for value in kept.values())
        assert secret not in caplog.text
    assert office.directory.secret.hex() not in caplog.text


async def test_two_admins_that_remove_each_other_leave_one(gateways: Gateways) -> None:
    one, two = await gateways.two()
    await one.add("alice", "admin", PASSWORD)
    await two.add("bob", "admin", PASSWORD)
    for change in (lambda office, name: office.remove(name), lambda office, name: office.set_role(name, "viewer")):
        done = await asyncio.gather(change(one, "alice"), change(two, "bob"), return_exceptions=True)
        refused = [each for each in done if isinstance(each, Conflict)]
        assert len(refused) == 1
        assert "last admin" in refused[0].message
        left = [user.name for user in one.directory.people.users if user.role == "admin"]
        await until(lambda: len([u for u in one.directory.people.users if u.role == "admin"]) == 1, "one admin")
        gone = {"alice", "bob"} - {u.name for u in one.directory.people.users if u.role == "admin"}
        assert left
        name = gone.pop()
        if name in {user.name for user in one.directory.people.users}:
            await one.set_role(name, "admin")
        else:
            await one.add(name, "admin", PASSWORD)


async def test_the_first_user_is_made_once(gateways: Gateways) -> None:
    one, two = await gateways.two()
    made = await asyncio.gather(
        one.add("alice", "admin", PASSWORD), two.add("alice", "admin", PASSWORD), return_exceptions=True
    )
    assert [type(each) for each in made].count(Conflict) == 1
    await until(lambda: two.directory.has_users and one.directory.has_users, "both know the user")


async def test_an_invitation_used_twice_at_once_makes_one_user(gateways: Gateways) -> None:
    one, two = await gateways.two()
    await one.add("alice", "admin", PASSWORD)
    code, _ = await one.invite("viewer", "alice", 60)
    await until(lambda: two.directory.people.invitations, "the other gateway knows the invitation")
    made = await asyncio.gather(
        one.register(code, "bob", PASSWORD, "p"), two.register(code, "carol", PASSWORD, "p"), return_exceptions=True
    )
    assert [type(each) for each in made].count(InvalidRequest) == 1
    await until(lambda: len(two.directory.people.users) == len(one.directory.people.users) == 2, "one user more")
    with pytest.raises(InvalidRequest):
        await one.register(code, "dave", PASSWORD, "p")


async def test_of_twenty_that_use_an_invitation_at_once_one_becomes_a_user(gateways: Gateways) -> None:
    offices = [await gateways.one() for _ in range(4)]
    await offices[0].add("alice", "admin", PASSWORD)
    code, _ = await offices[0].invite("admin", "alice", 60)
    for office in offices:
        await until(lambda office=office: office.directory.people.invitations, "the invitation is known")
    made = await asyncio.gather(
        *(offices[at % 4].register(code, f"user{at}", PASSWORD, f"peer{at}") for at in range(20)),
        return_exceptions=True,
    )
    assert [type(each) for each in made].count(InvalidRequest) == 19, made
    for office in offices:
        await until(lambda office=office: len(office.directory.people.users) == 2, "one user more")
        assert not office.directory.people.invitations


async def test_admins_that_all_remove_and_demote_each_other_leave_one(gateways: Gateways) -> None:
    offices = [await gateways.one() for _ in range(3)]
    names = [f"admin{at}" for at in range(6)]
    for name in names:
        await offices[0].add(name, "admin", PASSWORD)
    changes = [offices[at % 3].remove(name) for at, name in enumerate(names)]
    changes += [offices[(at + 1) % 3].set_role(name, "viewer") for at, name in enumerate(names)]
    done = await asyncio.gather(*changes, return_exceptions=True)
    assert any(isinstance(each, Conflict) for each in done)
    assert all(each is None or isinstance(each, Conflict | NotFound | User) for each in done), done
    for office in offices:
        await until(
            lambda office=office: [user.role for user in office.directory.people.users].count("admin") == 1, "one admin"
        )


async def test_a_session_holds_on_every_gateway_until_its_logout_and_the_others_until_another_password(
    gateways: Gateways,
) -> None:
    one, two = await gateways.two()
    await one.add("alice", "admin", PASSWORD)
    logins = [await one.login("alice", PASSWORD, "peer") for _ in range(2)]
    for login in logins:
        await until(lambda login=login: two.directory.session(login.token), "the session holds there")
    found = two.directory.session(logins[0].token)
    assert found is not None
    renewed = await two.renew(found[0], found[1].session_id)
    assert renewed is not None
    assert two.directory.session(renewed.token) is not None
    await two.logout(found[0], found[1].session_id)
    one.directory.clock = two.directory.clock = lambda: time.time() + 2  # past the grace of a new login
    await until(lambda: one.directory.session(logins[0].token) is None, "the session is over there")
    assert one.directory.session(logins[1].token) is not None
    assert await two.renew(found[0], found[1].session_id) is None
    await two.change_password(found[0], PASSWORD, "battery staple", "peer")
    await until(lambda: one.directory.session(logins[1].token) is None, "every session is over there")
    with pytest.raises(Unauthenticated):
        await one.login("alice", PASSWORD, "peer")
    assert (await one.login("alice", "battery staple", "peer")).user.name == "alice"


async def test_a_wrong_name_and_a_wrong_password_sound_the_same_and_are_slowed(gateways: Gateways) -> None:
    office = await gateways.one()
    await office.add("alice", "admin", PASSWORD)
    said = set()
    for name in ("alice", "nobody"):
        for _ in range(5):
            with pytest.raises(Unauthenticated) as caught:
                await office.login(name, "wrong password", "peer")
            said.add(caught.value.message)
        with pytest.raises(RateLimited) as slowed:
            await office.login(name, PASSWORD, "peer")
        assert slowed.value.retry_after_s >= 1
    assert len(said) == 1
    assert (await office.login("alice", PASSWORD, "another peer")).user.name == "alice"


async def test_when_a_key_was_used_is_written_by_any_gateway_and_never_brings_a_key_back(gateways: Gateways) -> None:
    one, two = await gateways.two()
    text, key = await one.make_key("app", ALL, None, NONE, "alice")
    await until(lambda: two.directory.key(text), "the other gateway knows the key")
    await two.directory.write_used()
    await until(lambda: one.directory.list_keys()[0].last_used_at, "the last use is known there")
    assert one.directory.key(text) is not None
    two.directory.clock = lambda: time.time() + 100
    assert two.directory.key(text) is not None
    await two.directory.write_used()
    later = two.directory.list_keys()[0].last_used_at
    await one.directory.write_used()
    assert one.directory.list_keys()[0].last_used_at == later, "the later use stays"
    assert two.directory.key(text) is not None
    await one.revoke_key(key.key_id)
    await two.directory.write_used()
    assert (await read_bucket(gateways.buses[0].client, subjects.BUCKET_IDENTITY))[f"key.{key.key_id}"] is None


async def test_without_the_bus_a_gateway_goes_on_with_what_it_knows(gateways: Gateways) -> None:
    office = await gateways.one()
    await office.add("alice", "admin", PASSWORD)
    text, key = await office.make_key("app", ALL, None, NONE, "alice")
    gateways.server.kill()
    await until(lambda: not gateways.buses[0].connected, "the bus is gone")
    assert office.directory.key(text) is not None
    assert office.directory.has_users
    with pytest.raises((BusError, DeadlineExceeded)):
        await office.revoke_key(key.key_id)
    gateways.server.start()
    await until(lambda: gateways.buses[0].connected, "the bus is back", 20)
    await office.revoke_key(key.key_id)
    assert office.directory.key(text) is None


async def test_keys_are_many_and_found_by_id_beginning_or_name(gateways: Gateways) -> None:
    office = await gateways.one()
    made = [(await office.make_key(name, ALL, None, NONE, "a"))[1] for name in ("app", "app", "other")]
    with pytest.raises(InvalidRequest, match="stands for 2"):
        await office.revoke_key("app")
    assert (await office.revoke_key(made[0].key_id[:8])).key_id == made[0].key_id
    assert (await office.revoke_key("app")).key_id == made[1].key_id
    assert digest_of("x") != made[2].digest
    for permissions, days in (((), None), (("root",), None), (ALL, 5)):
        with pytest.raises(InvalidRequest):
            await office.make_key("bad", permissions, days, NONE, "a")
