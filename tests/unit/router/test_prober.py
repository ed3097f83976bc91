"""Who is asked whether anybody lives there."""

from __future__ import annotations

from typing import Any, cast

import pytest

from llmlb.bus import subjects
from llmlb.bus.errors import NodeLost
from llmlb.router.inbox import Inbox
from llmlb.router.prober import QUIET_S, UNHEARD_S, Prober

NODE, OTHER = "a" * 32, "b" * 32


class Asked:
    """A bus that takes note."""

    def __init__(self) -> None:
        self.subjects: list[str] = []

    def publish_now(self, subject: str, _: bytes, *, reply: str = "") -> bool:
        self.subjects.append(subject)
        return True


@pytest.fixture
def bus() -> Asked:
    return Asked()


@pytest.fixture
def suspects() -> set[str]:
    return set()


@pytest.fixture
def prober(bus: Asked, suspects: set[str]) -> Prober:
    return Prober(cast(Any, bus), "9" * 32, suspects.__contains__)


async def failure(inbox: Inbox) -> BaseException | None:
    try:
        await inbox.get()
    except NodeLost as error:
        return error
    return None


async def test_only_a_node_that_is_silent_is_asked(prober: Prober, bus: Asked) -> None:
    quiet, talks = Inbox(), Inbox()
    prober.watch(NODE, quiet)
    prober.watch(OTHER, talks)
    now = quiet.heard_at + QUIET_S
    talks.heard_at = now
    prober.look(now)
    assert bus.subjects == [subjects.cancel(NODE)]


async def test_a_node_of_this_process_is_asked_only_while_it_is_not_on_the_bus(prober: Prober, bus: Asked) -> None:
    connected = True
    prober.here = lambda node_id: node_id == NODE and connected
    inbox, other = Inbox(), Inbox()
    prober.watch(NODE, inbox)
    prober.watch(OTHER, other)
    now = max(inbox.heard_at, other.heard_at) + QUIET_S
    prober.look(now)
    assert bus.subjects == [subjects.cancel(OTHER)]
    connected = False
    prober.look(now)
    assert sorted(bus.subjects[1:]) == sorted([subjects.cancel(NODE), subjects.cancel(OTHER)])


async def test_a_node_of_this_process_that_is_not_heard_any_more_counts_as_gone(
    prober: Prober, bus: Asked, suspects: set[str]
) -> None:
    prober.here = lambda _: True
    inbox = Inbox()
    prober.watch(NODE, inbox)
    prober.look(inbox.heard_at + UNHEARD_S)
    suspects.add(NODE)
    prober.look(inbox.heard_at + UNHEARD_S)
    assert isinstance(await failure(inbox), NodeLost)
    assert bus.subjects == []
