"""A key that is revoked, and a user who is removed: what runs for them ends, on every gateway, and what waits too."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import pytest

from llmlb.bus import subjects
from llmlb.bus.errors import Unauthenticated
from llmlb.bus.messages.infer import Accepted, ChatMessage, Delta, InferRequest, Progress
from llmlb.router.call import Call, Direct
from llmlb.router.gateway.metered import Metered
from tests.contract.test_dispatch import Rig, ScriptedNode
from tests.unit.gateway.auth_rig import ADMIN, VIEWER, Known

PATIENCE_S = 10


async def endless(node: ScriptedNode, request: InferRequest, to: str) -> None:
    id = request.request_id
    await node.say(to, Accepted(request_id=id, seq=0, node_id=node.node_id), Delta(request_id=id, seq=1, text="a"))


def asked(rig: Rig) -> InferRequest:
    message = ChatMessage(role="user", content="hi")
    return InferRequest(request_id=uuid.uuid4().hex, model=rig.model, kind="chat", messages=(message,))


async def read(inference: Metered, rig: Rig, call: Call, begun: asyncio.Event) -> None:
    """Until it fails."""
    async with contextlib.aclosing(inference.stream(asked(rig), call)) as events:
        async for event in events:
            if isinstance(event, Delta | Progress):
                begun.set()


@pytest.mark.parametrize("limits", [{}, {"concurrency": 5}])
@pytest.mark.parametrize("who", ["key", "user"])
async def test_what_runs_ends_and_frees_its_slot(rig: Rig, who: str, limits: dict[str, int]) -> None:
    directory = Known()
    directory.put_users(ADMIN, VIEWER)
    inference = Metered(rig.dispatcher, directory)
    node = await rig.node(endless)
    key = directory.key(directory.put_key("inference", **limits))
    other = directory.key(directory.put_key("inference"))
    assert key is not None
    assert other is not None
    mine = key.key_id if who == "key" else VIEWER.user_id
    begun = {name: asyncio.Event() for name in (mine, other.key_id)}
    async with asyncio.timeout(PATIENCE_S):
        running = [
            asyncio.ensure_future(read(inference, rig, Call(key=name, direct=Direct()), event))
            for name, event in begun.items()
        ]
        for event in begun.values():
            await event.wait()
        if who == "key":
            directory.put(subjects.api_key_key(key.key_id), None)
        else:
            directory.put_users(ADMIN)
        with pytest.raises(Unauthenticated, match="revoked"):
            await running[0]
        await node.cancelled.get()
        record = await rig.records.get()
        assert (record.status, record.reason, record.key) == ("error", "unauthenticated", mine)
        assert not running[1].done(), "the others' go on"
        # One whose head was looked at before, and whose body comes afterwards.
        with pytest.raises(Unauthenticated, match="revoked"):
            inference.stream(asked(rig), Call(key=mine))
        running[1].cancel()
        await asyncio.wait([running[1]])


async def test_a_key_that_was_changed_and_not_revoked_goes_on() -> None:
    directory, gone = Known(), []
    directory.put_users(ADMIN, VIEWER)
    directory.on_gone = gone.append
    key = directory.key(directory.put_key("inference"))
    assert key is not None
    name = subjects.api_key_key(key.key_id)
    directory.put(name, key.model_copy(update={"last_used_at": 5.0}))
    assert gone == []
    directory.put(name, None)
    directory.put(name, None)
    assert gone == [key.key_id]
    assert directory.is_gone(key.key_id)
    directory.put(name, key)  # a bus that lost its store has it again
    assert not directory.is_gone(key.key_id)
    directory.put_users(ADMIN)
    assert directory.is_gone(VIEWER.user_id)
    directory.put_users(ADMIN, VIEWER)
    assert not directory.is_gone(VIEWER.user_id)
