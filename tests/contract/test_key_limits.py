"""The limits of API keys over a real bus: what one gateway lets in counts at all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.connection import Bus
from llmlb.bus.messages.identity import KeyLimits
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.limits import Meter
from llmlb.router.identity.office import Office
from tests.conftest import MakeBus
from tests.support.natsd import NatsServer


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 10) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


class Gateways:
    """Gateways on one bus."""

    def __init__(self, server: NatsServer, make_bus: MakeBus) -> None:
        self.server, self._make_bus = server, make_bus
        self.directories: list[Directory] = []
        self.buses: list[Bus] = []

    async def one(self) -> Directory:
        bus = await self._make_bus(url=self.server.url)
        directory = Directory(bus)
        await directory.start()
        await until(lambda: directory._sharing._subscribed, "it hears the others")
        self.directories.append(directory)
        self.buses.append(bus)
        return directory

    async def key(self, **limits: int) -> str:
        """A key with these limits, known to all gateways so far; its id."""
        office = Office(self.directories[0], lambda: 0.0)
        _, key = await office.make_key("k", ("inference",), None, KeyLimits(**limits), "test")
        office.close()
        for directory in self.directories:
            await until(lambda directory=directory: directory.meter(key.key_id), "the key is known")
        return key.key_id


@pytest.fixture
async def gateways(tmp_path: Path, make_bus: MakeBus) -> AsyncIterator[Gateways]:
    it = Gateways(NatsServer(tmp_path / "nats").start(), make_bus)
    yield it
    for directory in it.directories:
        await directory.close()
    for bus in it.buses:
        await bus.close()
    it.server.stop()


def meter(directory: Directory, key_id: str) -> Meter:
    found = directory.meter(key_id)
    assert found is not None
    return found


def refused(directory: Directory, key_id: str) -> str:
    """Why a request of this key would be refused; empty: it would not."""
    refusal = meter(directory, key_id).refusal(time.monotonic())
    return "" if refusal is None else refusal[0]


async def test_requests_let_in_by_any_gateway_count_at_all(gateways: Gateways) -> None:
    one, two, three = [await gateways.one() for _ in range(3)]
    key = await gateways.key(requests_per_minute=4)
    for directory in (one, one, two, three):
        assert not refused(directory, key)
        meter(directory, key).begin(time.monotonic())
    for directory in (one, two, three):
        await until(lambda directory=directory: refused(directory, key), "no gateway lets a fifth one in")
        assert "4 requests a minute" in refused(directory, key)


async def test_tokens_used_at_one_gateway_are_gone_at_all(gateways: Gateways) -> None:
    one, two = await gateways.one(), await gateways.one()
    key = await gateways.key(tokens_per_minute=100)
    meter(one, key).used(5000, time.monotonic())
    await until(lambda: refused(two, key), "the tokens are gone there too")
    refusal = meter(two, key).refusal(time.monotonic())
    assert refusal is not None
    assert refusal[1] > 1000, "seconds, as much as was overdrawn"


async def test_requests_under_way_at_other_gateways_count_until_they_end(gateways: Gateways) -> None:
    one, two = await gateways.one(), await gateways.one()
    key = await gateways.key(concurrency=2)
    meter(one, key).running += 2
    await until(lambda: refused(two, key), "both are under way")
    assert "2 requests at the same time" in refused(two, key)
    meter(one, key).running -= 1
    await until(lambda: not refused(two, key), "one has ended")


async def test_requests_of_a_gateway_that_died_are_forgotten_and_those_of_one_that_lives_are_not(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmlb.router.identity.limits.RUNNING_FRESH_S", 0.8)
    monkeypatch.setattr("llmlb.router.identity.sharing.RUNNING_EVERY_S", 0.1)
    one, two = await gateways.one(), await gateways.one()
    key = await gateways.key(concurrency=1)
    meter(one, key).running += 1
    await until(lambda: refused(two, key), "it is under way")
    said = meter(two, key)._elsewhere[one._sharing.gateway_id][1]
    await until(lambda: meter(two, key)._elsewhere[one._sharing.gateway_id][1] > said + 0.2, "it is said again")
    await one._sharing.close()  # as kill -9: nothing is said any more
    await until(lambda: not refused(two, key), "the dead one's requests are forgotten")


async def test_what_is_under_way_is_said_again_while_other_keys_are_busy(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmlb.router.identity.sharing.RUNNING_EVERY_S", 0.1)
    one, two = await gateways.one(), await gateways.one()
    quiet, busy = await gateways.key(concurrency=1), await gateways.key(requests_per_minute=10**6)
    meter(one, quiet).running += 1
    await until(lambda: refused(two, quiet), "it is under way")
    said = meter(two, quiet)._elsewhere[one._sharing.gateway_id][1]

    def again() -> bool:
        meter(one, busy).begin(time.monotonic())
        return meter(two, quiet)._elsewhere[one._sharing.gateway_id][1] > said + 0.3

    await until(again, "it is said again")


async def test_a_gateway_that_starts_later_knows_what_was_used_before(gateways: Gateways) -> None:
    one = await gateways.one()
    key = await gateways.key(requests_per_minute=3, tokens_per_minute=100)
    for _ in range(3):
        meter(one, key).begin(time.monotonic())
    meter(one, key).used(700, time.monotonic())
    two = await gateways.one()
    await until(lambda: two.meter(key), "the key is known")
    await until(lambda: refused(two, key), "it has no fresh minute")
    await until(lambda: meter(two, key).headers(time.monotonic())["x-ratelimit-remaining-tokens"] == "0", "tokens too")


async def test_without_the_bus_each_counts_for_itself_and_then_together_again(gateways: Gateways) -> None:
    one, two = await gateways.one(), await gateways.one()
    key = await gateways.key(requests_per_minute=4)
    gateways.server.kill()
    await until(lambda: not any(bus.connected for bus in gateways.buses), "the bus is gone")
    for directory in (one, two):
        for _ in range(2):
            assert not refused(directory, key)
            meter(directory, key).begin(time.monotonic())
    gateways.server.start()
    await until(lambda: all(bus.connected for bus in gateways.buses), "the bus is back", 20)
    for directory in (one, two):
        await until(lambda directory=directory: refused(directory, key), "both know of all four", 20)


async def test_nonsense_on_the_bus_is_no_use(gateways: Gateways) -> None:
    one = await gateways.one()
    key = await gateways.key(requests_per_minute=1)
    client = gateways.buses[0].client
    for data in (b"", b"{}", b"\xff", b'{"type":"llmlb.identity.used.v1","gateway_id":"x","sent_at":1,"keys":[{}]}'):
        await client.publish("llmlb.v1.gateway.keys", data)
    two = await gateways.one()
    meter(one, key).begin(time.monotonic())
    await until(lambda: two.meter(key) and refused(two, key), "what makes sense is still heard")
