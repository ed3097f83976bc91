"""What of a key's limits an answer uses up, and that as many run at the same time as the key may have."""

from __future__ import annotations

import asyncio

import pytest

from llmlb.bus.errors import RateLimited
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.call import Call
from llmlb.router.gateway.metered import Metered
from tests.unit.gateway.auth_rig import Known
from tests.unit.gateway.scripted import Scripted, delta, end


async def test_what_only_counts_is_not_metered() -> None:
    directory = Known()
    key = directory.key(directory.put_key("inference", tokens_per_minute=1000))
    assert key is not None
    meter = directory.meter(key.key_id)
    assert meter is not None
    used: list[int] = []
    meter.used = lambda tokens, now: used.append(tokens)  # type: ignore[method-assign]
    inference = Metered(Scripted(lambda request: [delta("hi"), end(prompt=30, completion=5)]), directory)
    for count_only in (True, False):
        request = InferRequest(request_id="r", model="m", kind="chat", count_only=count_only)
        assert [event async for event in inference.stream(request, Call(key=key.key_id))]
    assert used == [35]


async def test_requests_that_were_let_in_together_do_not_run_together_beyond_the_limit() -> None:
    """Their heads came before any of their bodies, so that each found nothing running."""
    directory, go = Known(), asyncio.Event()
    key = directory.key(directory.put_key("inference", concurrency=1))
    assert key is not None
    meter = directory.meter(key.key_id)
    assert meter is not None
    inference = Metered(Scripted(lambda request: [go, delta("hi"), end()]), directory)
    request = InferRequest(request_id="r", model="m", kind="chat")

    async def ask(call: Call) -> int:
        return len([event async for event in inference.stream(request, call)])

    one = Call(key=key.key_id)
    running = [asyncio.ensure_future(ask(one)) for _ in range(2)]  # two choices of one call
    await asyncio.sleep(0)
    assert meter.running == 1
    with pytest.raises(RateLimited, match="1 requests at the same time"):
        await ask(Call(key=key.key_id))
    assert meter.running == 1, "who was refused is not counted"
    go.set()
    assert all(await asyncio.gather(*running))
    assert meter.running == 0
    assert await ask(Call(key=key.key_id))
