"""What the dispatcher makes of ends that are neither an answer nor a failure that a node should have."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from llmlb.bus.errors import (
    BadMessage,
    ConfigError,
    DeadlineExceeded,
    EngineCrashed,
    LlmlbError,
    ModelUnknown,
    NodeBusy,
    NodeError,
    OutOfDisk,
)
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.dispatch import CRASHES_MAX
from tests.contract.test_dispatch import Rig, Script, ScriptedNode, answer, fail, rig

__all__ = ["rig"]


def in_turn(*scripts: Script) -> Script:
    """One after the other; then always the last."""
    left = list(scripts)

    async def script(node: ScriptedNode, request: InferRequest, to: str) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(node, request, to)

    return script


@pytest.mark.parametrize("end", [NodeBusy("full"), OutOfDisk("disk"), ModelUnknown("old list"), LlmlbError("defect")])
async def test_a_probe_with_any_end_leaves_its_node_open_for_the_next_one(rig: Rig, end: LlmlbError) -> None:
    node = await rig.node(in_turn(fail(EngineCrashed("dead")), fail(end), answer("fine")))
    breakers = rig.fleet.loads.breakers
    with pytest.raises(EngineCrashed):
        await rig.ask()
    async with asyncio.timeout(10):
        with contextlib.suppress(LlmlbError):  # a busy one is waited for
            await rig.ask()
        assert node.asked >= 2
        await node.beat()
        assert await rig.ask() == "fine"
    assert set(breakers.states().values()) == {"closed"}


@pytest.mark.parametrize(
    "error", [LlmlbError("defect"), DeadlineExceeded("some wait of its own"), BadMessage("bulk"), ConfigError("odd")]
)
async def test_what_no_node_should_answer_with_goes_to_another_node_and_opens_the_breaker(
    rig: Rig, error: LlmlbError
) -> None:
    bad = await rig.node(fail(error))
    good = await rig.node(answer("fine"))
    for _ in range(6):
        assert await rig.ask() == "fine"
    assert good.asked == 6
    assert 1 <= bad.asked <= 2
    assert rig.fleet.loads.breakers.states()[bad.node_id, rig.model] != "closed"


async def test_such_an_answer_is_not_asked_for_everywhere(rig: Rig) -> None:
    nodes = [await rig.node(fail(LlmlbError("the request breaks it"))) for _ in range(CRASHES_MAX + 1)]
    with pytest.raises(NodeError, match="the request breaks it"):
        await rig.ask()
    assert sum(node.asked for node in nodes) == CRASHES_MAX


async def test_a_defect_of_the_gateway_is_recorded_as_an_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.node(answer("fine"))

    def defect(*_: object) -> None:
        raise RuntimeError("as told")

    monkeypatch.setattr(rig.dispatcher, "_begin", defect)
    with pytest.raises(RuntimeError):
        await rig.ask()
    async with asyncio.timeout(5):
        record = await rig.records.get()
    assert (record.status, record.reason) == ("error", "internal_error")
