"""Silence is found out by a look from outside, and only where somebody waits."""

from __future__ import annotations

import asyncio

import pytest

from llmlb.bus.errors import EngineStalled, NodeLost
from llmlb.bus.messages.infer import Accepted, Delta, Progress
from llmlb.router.inbox import ACCEPT_TIMEOUT_S, Inbox

STALL_S = 30.0
ACCEPTED = Accepted(request_id="r", seq=0, node_id="n" * 32)


async def waiting(inbox: Inbox) -> asyncio.Future[object]:
    reader = asyncio.ensure_future(inbox.get())
    await asyncio.sleep(0)
    return reader


async def test_a_node_that_does_not_accept_is_lost() -> None:
    inbox = Inbox()
    reader = await waiting(inbox)
    inbox.look(inbox.heard_at + ACCEPT_TIMEOUT_S - 0.1, STALL_S)
    await asyncio.sleep(0)
    assert not reader.done()
    inbox.look(inbox.heard_at + ACCEPT_TIMEOUT_S, STALL_S)
    with pytest.raises(NodeLost, match="did not accept"):
        await reader


async def test_a_node_that_accepted_has_the_stall_limit() -> None:
    inbox = Inbox()
    reader = await waiting(inbox)
    inbox.put(ACCEPTED)
    inbox.look(inbox.heard_at + STALL_S - 0.1, STALL_S)
    await asyncio.sleep(0)
    assert not reader.done(), "accepted wakes nobody up, and nothing is wrong yet"
    inbox.look(inbox.heard_at + STALL_S, STALL_S)
    inbox.look(inbox.heard_at + STALL_S, STALL_S)
    with pytest.raises(EngineStalled):
        await reader


async def test_a_reader_that_is_elsewhere_is_no_silence_of_the_node() -> None:
    inbox = Inbox()
    inbox.put(ACCEPTED)
    inbox.put(Progress(request_id="r", seq=1, phase="prefill"))
    inbox.look(inbox.heard_at + 10 * STALL_S, STALL_S)
    assert (await inbox.get()).seq == 1


async def test_a_piece_goes_the_direct_way_only_while_its_reader_waits_for_it() -> None:
    inbox = Inbox()
    taken: list[int] = []
    inbox.direct = lambda delta: taken.append(delta.seq) is None
    inbox.put(ACCEPTED)
    inbox.put(Delta(request_id="r", seq=1, text="a"))
    reader = await waiting(inbox)
    await reader
    reader = await waiting(inbox)
    inbox.put(Delta(request_id="r", seq=2, text="b"))
    inbox.put(Progress(request_id="r", seq=3, phase="prefill"))
    inbox.put(Delta(request_id="r", seq=4, text="c"))
    await reader
    assert taken == [2]
    assert (await inbox.get()).seq == 4


async def test_after_a_failure_nothing_more_is_kept() -> None:
    inbox = Inbox()
    inbox.put(ACCEPTED)
    for _ in range(1000):
        inbox.put(Delta(request_id="r", seq=7, text="after a gap"))
    inbox.fail(EngineStalled("later"))
    assert len(inbox._items) == 1
    with pytest.raises(NodeLost, match="gap"):
        await inbox.get()
