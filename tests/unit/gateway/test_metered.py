"""Counting a prompt's tokens is no answer: it uses up nothing of a key's limits."""

from __future__ import annotations

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
