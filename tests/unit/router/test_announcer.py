"""Events wait for a bus that can't store them, however long; only what no bus will ever take is dropped."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusDown, DeadlineExceeded, LlmlbError, MessageTooLarge
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.events import NodeStateChanged
from llmlb.router import announcer as announcer_module
from llmlb.router.announcer import Announcer


class Troubled:
    """A bus that is there, and whose streams refuse for a while."""

    connected = True

    def __init__(self, *errors: LlmlbError) -> None:
        self.errors = list(errors)
        self.stored: list[str | None] = []
        self.all_stored = asyncio.Event()

    def on_up(self, callback: Any) -> None:
        pass

    async def wait_up(self) -> None:
        pass

    async def publish_stored(self, subject: str, message: Message, *, once: str | None = None) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.stored.append(once)
        if once == "last":
            self.all_stored.set()


def event() -> NodeStateChanged:
    return NodeStateChanged(node_id="a" * 32, name="n", before="online", after="offline", reason="silent", instance="i")


@pytest.mark.parametrize(
    ("errors", "stored"),
    [
        ([DeadlineExceeded("slow")] * 10 + [BusDown("no quorum")] * 10, ["first", "last"]),
        ([MessageTooLarge("too large")], ["last"]),
    ],
    ids=["for a long time", "for ever"],
)
async def test_an_event_waits_for_a_bus_in_trouble(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, errors: list[LlmlbError], stored: list[str]
) -> None:
    monkeypatch.setattr(announcer_module, "AGAIN_S", 0.001)
    bus = Troubled(*errors)
    announcer = Announcer(cast(Bus, bus))

    async def made() -> bool:
        return True

    monkeypatch.setattr(announcer, "_ensure", made)
    await announcer.start()
    announcer.tell("node", event(), "first")
    announcer.tell("node", event(), "last")
    async with asyncio.timeout(5):
        await bus.all_stored.wait()
    await announcer.close()
    assert bus.stored == stored
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
