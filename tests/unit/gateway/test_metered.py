"""What of a key's limits an answer uses up, and that as many run at the same time as the key may have."""

from __future__ import annotations

import asyncio

import pytest

from llmlb.bus.errors import NodeLost, RateLimited
from llmlb.bus.messages.infer import ChatMessage, Embedded, InferRequest, Progress
from llmlb.router.call import Call, Direct
from llmlb.router.gateway.metered import Metered
from tests.unit.gateway.auth_rig import Known
from tests.unit.gateway.scripted import Scripted, Step, delta, end


async def test_what_only_counts_is_not_metered() -> None:
    directory = Known()
    key_id, _, used = directory.paying_key(tokens_per_minute=1000)
    inference = Metered(Scripted(lambda request: [delta("hi"), end(prompt=30, completion=5)]), directory)
    for count_only in (True, False):
        request = InferRequest(request_id="r", model="m", kind="chat", count_only=count_only)
        assert [event async for event in inference.stream(request, Call(key=key_id))]
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


def prefill(done: int) -> Progress:
    return Progress(request_id="r", seq=0, phase="prefill", done=done, total=40)


VECTOR = Embedded(request_id="r", seq=0, index=1, vector="")


@pytest.mark.parametrize(
    ("steps", "read", "straight", "used"),
    [
        ([delta("a", token_ids=(1, 2)), delta("b", token_ids=(3,)), end()], 2, 0, 3 + 5),
        ([delta("a"), delta("b"), end()], 2, 0, 2 + 5),
        ([delta("a", token_ids=(1,)), end()], 1, 7, 8 + 5),
        ([prefill(10), delta("a", token_ids=(1,)), end()], 2, 0, 1 + 40),
        ([prefill(10), prefill(30), end()], 2, 0, 30),
        ([VECTOR, end()], 1, 0, 3),
        ([Progress(request_id="r", seq=0, phase="queued", done=3, total=9), end()], 1, 0, 0),
        ([delta("a", token_ids=(1,)), NodeLost("x")], 2, 0, 1 + 5),
        ([prefill(10), NodeLost("x")], 2, 0, 0),
        ([delta("a", token_ids=(1,)), end(prompt=30, completion=1)], 2, 3, 31),
    ],
)
async def test_who_leaves_before_the_end_pays_for_what_came(
    steps: list[Step], read: int, straight: int, used: int
) -> None:
    """Else a key reads all but the end of each answer, hangs up, and has as many tokens as it likes."""
    directory = Known()
    key_id, meter, paid = directory.paying_key(tokens_per_minute=1000)
    message = ChatMessage(role="user", content="x" * 17)
    request = InferRequest(request_id="r", model="m", kind="chat", messages=(message,), inputs=("", "y" * 12))
    call = Call(key=key_id, direct=Direct())
    answer = Metered(Scripted(lambda _: steps), directory).stream(request, call)
    assert call.direct is not None
    call.direct.tokens = 100  # of an earlier try of this call
    try:
        for at in range(read):
            await anext(answer)
            call.direct.tokens += 0 if at else straight
    except NodeLost:
        pass
    await answer.aclose()
    assert sum(paid) == used
    assert meter.running == 0
