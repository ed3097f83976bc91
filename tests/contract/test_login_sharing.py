"""Guessing passwords over several gateways is as slow as over one: they tell each other of each attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus import codec, subjects
from llmlb.bus.errors import LlmlbError, RateLimited, Unauthenticated
from llmlb.bus.messages.identity import LoginTried
from llmlb.router.identity import passwords
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.login_sharing import WAITING_MAX
from llmlb.router.identity.office import Office
from llmlb.router.identity.throttle import counted_as
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer

PEER = "192.0.2.7"
PASSWORD = "correct horse"


async def until(condition: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not in time: {what}") from None


class Gateways:
    """On one bus of their own; no time passes for the throttling."""

    def __init__(self, server: NatsServer, make_bus: MakeBus) -> None:
        self.server, self._make_bus = server, make_bus
        self.offices: list[Office] = []

    async def one(self) -> Office:
        bus = await self._make_bus(url=self.server.url)
        office = Office(Directory(bus), lambda: 0.0)
        await office.directory.start()
        await until(lambda: office.directory.login_sharing.listens, "it listens")
        await bus.client.flush()
        self.offices.append(office)
        return office

    def waits(self, office: Office, name: str, peer: str = PEER) -> bool:
        """Whether that gateway would refuse an attempt now. None is counted."""
        kinds = office._logins._counted(*counted_as(name, peer))
        return any(kind.wait_s(who, 0.0) > 0 for kind, who in kinds)

    async def close(self) -> None:
        for office in self.offices:
            await office.directory.close()
            office.close()


@pytest.fixture
async def gateways(tmp_path: Path, make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateways]:
    monkeypatch.setattr(passwords, "LOG2_N", 4)
    it = Gateways(NatsServer(tmp_path / "nats").start(), make_bus)
    yield it
    await it.close()
    it.server.stop()


async def wrong(office: Office, name: str, peer: str = PEER) -> LlmlbError:
    """What a wrong password meets."""
    with pytest.raises((Unauthenticated, RateLimited)) as caught:
        await office.login(name, "guessed wrong", peer)
    return caught.value


async def test_failures_at_all_gateways_count_together(gateways: Gateways) -> None:
    one, two, three = [await gateways.one() for _ in range(3)]
    for office in (one, two, three, one, two):
        assert isinstance(await wrong(office, "alice"), Unauthenticated)
    for office in (one, two, three):
        await until(lambda office=office: gateways.waits(office, "alice"), "all of them refuse")
        assert isinstance(await wrong(office, "alice"), RateLimited)
        assert not gateways.waits(office, "alice", "192.0.2.8"), "another peer's attempts are its own"
        assert not gateways.waits(office, "bob")


async def test_a_right_password_is_forgiven_everywhere(gateways: Gateways) -> None:
    one, two = await gateways.one(), await gateways.one()
    await one.add("alice", "admin", PASSWORD)
    await until(lambda: two.directory.has_users, "two knows alice")
    for _ in range(4):
        await wrong(one, "alice")
    who = f"{PEER} {counted_as('alice', PEER)[0]}"
    kind = two._logins._kinds[0]
    await until(lambda: who in kind._seen and kind._seen[who].count == 4, "two knows of them")
    await two.login("alice", PASSWORD, PEER)
    await until(lambda: who not in one._logins._kinds[0]._seen, "one has forgiven them too")
    for _ in range(4):
        assert isinstance(await wrong(one, "alice"), Unauthenticated)


async def test_what_happened_without_the_bus_is_told_afterwards(gateways: Gateways) -> None:
    one, two = await gateways.one(), await gateways.one()
    await wrong(one, "alice")
    who = counted_as("alice", PEER)[0]
    kind = two._logins._kinds[2]
    await until(lambda: who in kind._seen, "the news flows")
    gateways.server.kill()
    await until(lambda: not one.directory.mirror._bus.connected, "the bus is missed")
    for _ in range(4):
        assert isinstance(await wrong(one, "alice"), Unauthenticated)
    assert isinstance(await wrong(one, "alice"), RateLimited), "each still counts for itself"
    gateways.server.start()
    await until(lambda: gateways.waits(two, "alice"), "the other one has heard of it")


async def test_the_news_holds_no_name(gateways: Gateways) -> None:
    one = await gateways.one()
    heard: list[bytes] = []
    bus = await gateways._make_bus(url=gateways.server.url)

    async def hear(msg: Any) -> None:
        heard.append(msg.data)

    await bus.subscribe(subjects.logins_tried(), hear)
    await bus.client.flush()
    await wrong(one, "my-password-by-mistake")
    await until(lambda: len(heard) >= 2, "told")
    said = [codec.decode_as(LoginTried, data) for data in heard]
    assert [one.outcome for one in said] == ["began", "failed"]
    assert not any(b"my-password" in data for data in heard)


async def test_nonsense_and_strangers_words_harm_nobody(gateways: Gateways) -> None:
    one = await gateways.one()
    await wrong(one, "alice")
    bus = await gateways._make_bus(url=gateways.server.url)
    await bus.publish_bytes(subjects.logins_tried(), b"{")
    await bus.publish_bytes(subjects.logins_tried(), b'{"type": "llmlb.identity.login_tried.v1", "outcome": "new"}')
    for outcome in ("succeeded", "failed", "succeeded", "began"):
        await bus.publish(
            subjects.logins_tried(), LoginTried(gateway_id="x", name="", peer="nobody\n", outcome=outcome)
        )
    kind = one._logins._kinds[1]
    await until(lambda: "nobody\n" in kind._seen, "it still listens")


async def test_what_waits_for_the_bus_is_bounded(gateways: Gateways) -> None:
    one = await gateways.one()
    gateways.server.kill()
    for number in range(3 * WAITING_MAX):
        one.directory.login_sharing.tell("began", str(number), PEER)
    assert len(one.directory.login_sharing._waiting) <= WAITING_MAX
    gateways.server.start()
    await until(lambda: not one.directory.login_sharing._waiting, "all that is left is told")
