"""What a key with limits pays for an answer that its client leaves, over the bus: pieces that go straight count too."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import pytest

from llmlb.bus.messages.infer import Accepted, ChatMessage, Delta, InferRequest
from llmlb.router.call import Call, Direct
from llmlb.router.gateway.metered import Metered
from tests.contract.test_dispatch import Rig, ScriptedNode
from tests.unit.gateway.auth_rig import Known

PIECES = 6


async def without_end(node: ScriptedNode, request: InferRequest, to: str) -> None:
    id = request.request_id
    deltas = [Delta(request_id=id, seq=1 + at, text="a", token_ids=(at, at)) for at in range(PIECES)]
    await node.say(to, Accepted(request_id=id, seq=0, node_id=node.node_id), *deltas)


@pytest.mark.parametrize("straight", [True, False])
async def test_who_hangs_up_pays_for_what_came(rig: Rig, straight: bool) -> None:
    directory = Known()
    key_id, _, paid = directory.paying_key(tokens_per_minute=1000)
    await rig.node(without_end)
    call, all_came, came = Call(key=key_id, direct=Direct()), asyncio.Event(), 0

    def piece(delta: Delta) -> bool:
        nonlocal came
        came += straight
        if came == PIECES:
            all_came.set()
        return straight

    async def read() -> None:
        nonlocal came
        message = ChatMessage(role="user", content="x" * 20)
        request = InferRequest(request_id=uuid.uuid4().hex, model=rig.model, kind="chat", messages=(message,))
        async with contextlib.aclosing(Metered(rig.dispatcher, directory).stream(request, call)) as events:
            async for event in events:
                came += isinstance(event, Delta)
                assert call.direct is not None
                call.direct.piece = piece
                if came == PIECES:
                    all_came.set()

    async with asyncio.timeout(10):
        reader = asyncio.ensure_future(read())
        await all_came.wait()
        reader.cancel()
        await asyncio.wait([reader])
    assert paid == [2 * PIECES + 5]
