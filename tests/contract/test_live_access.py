"""Who may listen to events: keys, sessions, pages of other sites, and what happens when that ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from llmlb.bus.messages.identity import KeyLimits
from llmlb.router.gateway import auth
from llmlb.router.identity import passwords
from tests.conftest import MakeBus
from tests.support.hub_catalog import CatalogHub
from tests.support.live import LiveRig, listener, live_rig

PASSWORD = "correct horse"
ALL = ("inference", "models.read", "nodes")
FOREIGN = "https://evil.example"


@pytest.fixture
async def rig(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LiveRig]:
    monkeypatch.setattr(passwords, "LOG2_N", 4)
    made = await live_rig(make_bus, url, hub, tmp_path / "router")
    yield made
    await made.stop()


@pytest.fixture
async def alice(rig: LiveRig) -> LiveRig:
    """From here on everybody needs credentials."""
    await rig.office.add("alice", "admin", PASSWORD)
    return rig


async def key(rig: LiveRig, *permissions: str) -> str:
    text, _ = await rig.office.make_key("app", permissions, None, KeyLimits(), "alice")
    return text


async def session(rig: LiveRig) -> dict[str, str]:
    made = await rig.office.login("alice", PASSWORD, "peer")
    return {"Cookie": f"{auth.SESSION_COOKIE}={made.token}"}


async def refused(address: str, headers: dict[str, str] | None = None, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        await connect(address, additional_headers=headers, proxy=None, **options)
    return caught.value.response.status_code, (caught.value.response.body or b"").decode()


def own(rig: LiveRig) -> str:
    return rig.address.replace("ws://", "http://").removesuffix("/v0/ws")


async def test_a_program_on_this_machine_needs_nothing_until_the_first_user_exists(rig: LiveRig) -> None:
    async with listener(rig.address) as client:
        await rig.office.add("alice", "admin", PASSWORD)
        assert (await client.end())[0] == 4001, "from then on it does"
    status, body = await refused(rig.address)
    assert status == 401
    assert "authentication_error" in body


async def test_another_machine_always_needs_a_key(rig: LiveRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "is_loopback", lambda address: False)
    assert (await refused(rig.address))[0] == 401
    async with listener(rig.address, headers={"x-api-key": await key(rig, *ALL)}):
        pass


async def test_a_key_goes_into_a_header_or_a_subprotocol_and_never_into_the_address(alice: LiveRig) -> None:
    text = await key(alice, *ALL)
    async with listener(alice.address, headers={"Authorization": f"Bearer {text}"}) as client:
        assert client.socket.subprotocol is None
    offered = {"subprotocols": ["llmlb.v1", f"llmlb.key.{text}"]}
    async with listener(alice.address, options=offered) as client:
        assert client.socket.subprotocol == "llmlb.v1", "the key is not said back"
    for query in (f"key={text}", f"api_key={text}", f"token={text}"):
        assert (await refused(f"{alice.address}?{query}"))[0] == 401
        status, body = await refused(f"{alice.address}?{query}", {"x-api-key": text})
        assert status == 400
        assert text not in body
    only_key = await refused(alice.address, subprotocols=[f"llmlb.key.{text}"])
    assert only_key[0] == 400
    assert text not in only_key[1]
    wrong = await refused(alice.address, subprotocols=["llmlb.v1", "llmlb.key.sk_wrong"])
    assert wrong[0] == 401


async def test_a_revoked_key_closes_its_sockets_within_moments_and_no_others(alice: LiveRig) -> None:
    mine, other = {"x-api-key": await key(alice, *ALL)}, {}
    text, _ = await alice.office.make_key("other", ALL, None, KeyLimits(), "alice")
    other = {"x-api-key": text}
    async with (
        listener(alice.address, headers=mine) as one,
        listener(alice.address, headers=mine) as two,
        listener(alice.address, headers=other) as stays,
    ):
        await alice.office.revoke_key("app")
        for client in (one, two):
            code, reason = await client.end(10)
            assert code == 4001
            assert "not good any more" in reason
        alice.say(1)
        assert await stays.names(1) == ["n1"]


async def test_a_logout_closes_the_sockets_of_its_session(alice: LiveRig) -> None:
    headers = await session(alice)
    async with listener(alice.address, headers={**headers, "Origin": own(alice)}) as client:
        found = alice.directory.session(headers["Cookie"].partition("=")[2])
        assert found is not None
        await alice.office.logout(found[0], found[1].session_id)
        assert (await client.end(10))[0] == 4001


async def test_pages_of_other_sites_can_not_listen_with_our_cookie(alice: LiveRig) -> None:
    headers = await session(alice)
    for origin in (FOREIGN, "null", "", f"{own(alice)}.evil.example", "http://127.0.0.1:1"):
        status, body = await refused(alice.address, {**headers, "Origin": origin})
        assert status == 403, origin
        assert "another site" in body
    async with listener(alice.address, headers={**headers, "Origin": own(alice)}):
        pass


async def test_pages_of_other_sites_can_not_listen_through_a_browser_on_this_machine(rig: LiveRig) -> None:
    assert (await refused(rig.address, {"Origin": FOREIGN}))[0] == 403
    assert (await refused(rig.address, {"Origin": "null"}))[0] == 403
    async with listener(rig.address, headers={"Origin": own(rig)}):
        pass


async def test_a_page_of_another_site_that_was_given_a_key_may(alice: LiveRig) -> None:
    offered = {"subprotocols": ["llmlb.v1", f"llmlb.key.{await key(alice, *ALL)}"]}
    async with listener(alice.address, headers={"Origin": FOREIGN}, options=offered):
        pass


async def test_with_auth_off_pages_of_other_sites_still_can_not(
    make_bus: MakeBus, tmp_path: Path, hub: CatalogHub, url: str
) -> None:
    rig = await live_rig(make_bus, url, hub, tmp_path / "router", auth="off")
    assert (await refused(rig.address, {"Origin": FOREIGN}))[0] == 403
    async with listener(rig.address):
        pass
    await rig.stop()


async def test_what_a_key_hears_is_what_it_may_read(alice: LiveRig) -> None:
    nodes = {"x-api-key": await key(alice, "nodes")}
    async with listener(alice.address, headers=nodes) as client:
        assert client.hello["data"]["types"] == ["node_changed"]
    status, body = await refused(f"{alice.address}?types=node_changed,task_changed", nodes)
    assert status == 403
    assert "models.read" in body
    text, _ = await alice.office.make_key("chat", ("inference",), None, KeyLimits(), "alice")
    assert (await refused(alice.address, {"x-api-key": text}))[0] == 403


@pytest.mark.parametrize(
    "query", ["types=weather", "types=", "after=-1", "after=x", "after=99999999999999999999", "a=1"]
)
async def test_a_wrong_question_is_a_400_that_names_the_parameter(rig: LiveRig, query: str) -> None:
    status, body = await refused(f"{rig.address}?{query}")
    assert status == 400
    assert query.partition("=")[0] in body


async def test_whoever_speaks_no_websocket_is_told(rig: LiveRig) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{own(rig)}/v0/ws")
        assert answer.status_code == 400
        assert "WebSocket" in answer.json()["error"]["message"]
        for broken in ({"Sec-WebSocket-Key": "short"}, {"Sec-WebSocket-Version": "8"}, {"Connection": "keep-alive"}):
            good = {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            }
            answer = await client.get(f"{own(rig)}/v0/ws", headers={**good, **broken})
            assert answer.status_code == 400, broken


async def test_a_client_that_talks_is_sent_away(rig: LiveRig) -> None:
    async with listener(rig.address) as client:
        await client.socket.send("hello?")
        assert (await client.end())[0] == 1008
    async with listener(rig.address) as client:
        await client.socket.send("x" * 100_000)
        assert (await client.end())[0] in (1008, 1009)
    async with asyncio.timeout(10):
        while len(rig.live.feeds):
            await asyncio.sleep(0.02)


async def test_a_gateway_that_ends_says_so(rig: LiveRig) -> None:
    async with listener(rig.address) as client:
        rig.live.end_clients()
        code, reason = await client.end()
        assert code == 1001
        assert "connect again" in reason


async def test_further_clients_than_there_is_room_for_are_told_to_come_again(
    rig: LiveRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmlb.router.live.MOST_CLIENTS", 1)
    async with listener(rig.address):
        assert (await refused(rig.address))[0] == 429
    async with asyncio.timeout(10):
        while rig.live.full:
            await asyncio.sleep(0.02)
    async with listener(rig.address):
        pass
