"""Several choices in one request: their order, their end, and that none is left running."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlb.bus.errors import EngineCrashed, LlmlbError, QueueFull
from llmlb.bus.messages.infer import Delta, End, InferRequest, Sampling
from llmlb.router.gateway import answers
from llmlb.router.gateway.answers import merged
from tests.unit.gateway.scripted import Event, Scripted, Step, delta, end, progress, serving, until

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 0}
PROMPTS: dict[str, Any] = {"model": "m", "seed": 0}


def scripted(*scripts: Sequence[Step]) -> Scripted:
    """Each choice its own script: with seed 0, a choice's seed is its number."""
    return Scripted(lambda request: scripts[request.sampling.seed or 0])


def streams(inference: Scripted, count: int) -> list[Any]:
    requests = [
        InferRequest(request_id=str(seed), model="m", kind="chat", sampling=Sampling(seed=seed))
        for seed in range(count)
    ]
    return [inference.stream(request) for request in requests]


def seeds(requests: Sequence[InferRequest]) -> list[int]:
    return sorted(request.sampling.seed or 0 for request in requests)


def choice_tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("choices.")}


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(block[6:]) for block in text.split("\n\n") if block.startswith("data: {")]


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """Every test: no task of a choice lives on, and no failure went unseen."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context))
    gc.freeze()  # what was there before is no affair of this test, and takes long to look through
    yield
    await until(lambda: not choice_tasks())
    gc.collect()
    gc.unfreeze()
    await asyncio.sleep(0)
    assert unseen == []


async def test_the_first_choice_goes_ahead_until_its_first_token() -> None:
    begin, go_on = asyncio.Event(), asyncio.Event()
    first: list[Step] = [progress(), begin, delta("a"), go_on, end()]
    inference = scripted(first, [delta("b"), end()], [delta("c"), end()])
    events = merged(streams(inference, 3))
    index, event = await anext(events)
    assert (index, event.type) == (0, "llmlb.infer.progress.v1")
    assert len(inference.begun) == 1, "a sign of life is no token"
    begin.set()
    got = [await anext(events) for _ in range(5)]
    assert sorted(index for index, _ in got) == [0, 1, 1, 2, 2]
    go_on.set()
    assert [index async for index, _ in events] == [0]


async def test_a_request_that_fails_at_once_fails_once() -> None:
    inference = scripted([progress(), QueueFull("full")], [end()], [end()])
    with pytest.raises(QueueFull):
        async for _ in merged(streams(inference, 3)):
            pass
    assert seeds(inference.begun) == [0], "the others would only have made it fuller"
    assert choice_tasks() == set()


async def test_a_choice_that_fails_ends_all_others() -> None:
    never = asyncio.Event()
    inference = scripted([delta("a"), never], [delta("b"), 0.01, EngineCrashed("gone")], [delta("c"), never])
    with pytest.raises(EngineCrashed):
        async for _ in merged(streams(inference, 3)):
            pass
    assert seeds(inference.closed) == [0, 1, 2]
    assert inference.strangers == 0
    assert choice_tasks() == set()


@pytest.mark.parametrize("count", [1, 3])
async def test_a_choice_without_an_end_is_a_failure_and_not_a_wait(count: int) -> None:
    inference = scripted([delta("a")], [delta("b"), end()], [])
    async with asyncio.timeout(1):
        with pytest.raises(LlmlbError, match="no end"):
            async for _ in merged(streams(inference, count)):
                pass


@pytest.mark.parametrize("count", [1, 3])
async def test_an_error_nobody_expected_is_raised_and_not_waited_for(count: int) -> None:
    inference = scripted([delta("a"), 0.01, KeyError("x")], [end()], [asyncio.Event()])
    async with asyncio.timeout(1):
        with pytest.raises(KeyError):
            async for _ in merged(streams(inference, count)):
                pass
    assert len(inference.closed) == count


@pytest.mark.parametrize("taken", [0, 1, 4])
async def test_closing_early_closes_every_choice_that_has_begun(taken: int) -> None:
    never = asyncio.Event()
    inference = scripted(*[[delta("x"), never]] * 4)
    events = merged(streams(inference, 4))
    for _ in range(taken):
        await anext(events)
    await events.aclose()
    assert len(inference.closed) == len(inference.begun)
    assert inference.strangers == 0
    assert choice_tasks() == set()


async def test_cancelled_while_the_others_wait_for_the_first_one() -> None:
    inference = scripted([asyncio.Event()], [end()], [end()])

    async def read() -> None:
        async with contextlib.aclosing(merged(streams(inference, 3))) as events:
            async for _ in events:
                pass

    task = asyncio.create_task(read())
    await until(lambda: len(inference.begun) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seeds(inference.begun) == seeds(inference.closed) == [0]
    assert choice_tasks() == set()


async def test_cancelled_again_while_it_closes_still_ends_every_choice() -> None:
    inference = scripted(*[[delta("x"), asyncio.Event()]] * 3)

    async def read() -> None:
        async with contextlib.aclosing(merged(streams(inference, 3))) as events:
            async for _ in events:
                pass

    task = asyncio.create_task(read())
    await until(lambda: inference.sent == 3)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: len(inference.closed) == 3)


async def test_no_more_choices_than_allowed_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    def script(request: InferRequest) -> list[Step]:
        nonlocal most
        most = max(most, len(inference.begun) - len(inference.closed))
        return [delta("x"), 0.001, end()]

    inference = Scripted(script)
    ends = [event async for _, event in merged(streams(inference, 30)) if isinstance(event, End)]
    assert len(ends) == 30
    assert most == answers.PARALLEL_CHOICES


async def test_choices_wait_for_a_reader_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CHOICE_EVENTS_MAX", 4)
    scripts = [[*(delta(f"{choice}.{at} ") for at in range(50)), end()] for choice in range(3)]
    inference = scripted(*scripts)
    events = merged(streams(inference, 3))
    texts = ["", "", ""]
    async for index, event in events:
        if isinstance(event, Delta):
            texts[index] += event.text
        for _ in range(5):
            await asyncio.sleep(0)
        taken = sum(text.count(" ") for text in texts) + 3
        assert inference.sent <= taken + 4 + 3
    assert texts == ["".join(f"{choice}.{at} " for at in range(50)) for choice in range(3)]


steps = st.lists(st.sampled_from(["progress", "delta", "pause"]), max_size=6)
choices = st.lists(st.tuples(steps, st.sampled_from(["end", "end", "end", "fail", "stop"])), min_size=1, max_size=12)


@settings(max_examples=60)
@given(choices=choices, room=st.integers(1, 3), queue=st.integers(1, 3), stop_after=st.none() | st.integers(0, 10))
def test_any_mix_of_choices_is_whole_or_fails_and_leaves_nothing(
    choices: list[tuple[list[str], str]], room: int, queue: int, stop_after: int | None
) -> None:
    last: dict[str, list[Step]] = {"end": [end()], "fail": [EngineCrashed("x")], "stop": []}
    scripts: list[list[Step]] = []
    for number, (names, how) in enumerate(choices):
        made: dict[str, Step] = {"progress": progress(), "delta": delta(f"{number} "), "pause": 0.0}
        scripts.append([*(made[name] for name in names), *last[how]])
    inference = scripted(*scripts)

    async def run() -> list[tuple[int, Event]] | None:
        got = []
        try:
            async with asyncio.timeout(2), contextlib.aclosing(merged(streams(inference, len(scripts)))) as events:
                async for item in events:
                    got.append(item)
                    if len(got) == stop_after:
                        break
        except LlmlbError:
            return None
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}
        return got

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PARALLEL_CHOICES", room)
        patch.setattr(answers, "CHOICE_EVENTS_MAX", queue)
        got = asyncio.run(run())
    assert len(inference.begun) == len(inference.closed)
    assert inference.strangers == 0
    if stop_after is None and got is not None:
        assert inference.cut == 0, "what is done is not cancelled"
    whole = all(how == "end" for _, how in choices)
    if stop_after is None or got is None:
        assert (got is not None) == whole
    if whole and got is not None and stop_after is None:
        for number, script in enumerate(scripts):
            assert [event for index, event in got if index == number] == [s for s in script if not isinstance(s, float)]


async def test_answers_come_in_order_of_prompts_then_choices(tmp_path: Path) -> None:
    def script(request: InferRequest) -> list[Step]:
        pause = 0.03 if request.prompt == "a" else 0.0  # the first prompt's answers come last
        text = f"{request.prompt}{request.sampling.seed}"
        return [delta(""), pause, delta(text), end(prompt=len(request.prompt or ""), completion=2, cached_tokens=1)]

    inference = Scripted(script)
    async with serving(tmp_path, inference) as (client, _):
        body = {**PROMPTS, "prompt": ["a", "bb", "ccc"], "n": 2}
        whole = (await client.post("/v1/completions", json=body)).json()
        assert len({request.request_id for request in inference.begun}) == 6
        assert [choice["text"] for choice in whole["choices"]] == ["a0", "a1", "bb0", "bb1", "ccc0", "ccc1"]
        assert [choice["index"] for choice in whole["choices"]] == list(range(6))
        usage = whole["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (6, 12, 18)
        assert usage["prompt_tokens_details"] == {"cached_tokens": 3}, "of one choice a prompt, as the prompt tokens"
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        streamed = await client.post("/v1/completions", json=body)
    texts = [""] * 6
    *events, last = events_of(streamed.text)
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        assert event["usage"] is None
    assert texts == ["a0", "a1", "bb0", "bb1", "ccc0", "ccc1"]
    assert last["choices"] == []
    assert last["usage"] == usage


@pytest.mark.parametrize("error", [EngineCrashed("gone"), KeyError("x")])
async def test_one_failing_choice_is_one_typed_error(tmp_path: Path, error: Exception) -> None:
    never = asyncio.Event()
    inference = scripted([delta("a"), never], [delta("b"), 0.01, error], [delta("c"), never])
    code = "engine_crashed" if isinstance(error, EngineCrashed) else "internal_error"
    async with serving(tmp_path, inference) as (client, _):
        whole = await client.post("/v1/chat/completions", json={**CHAT, "n": 3})
        assert whole.status_code == 500
        assert whole.json()["error"]["code"] == code
        await until(lambda: len(inference.closed) == 3)
        streamed = await client.post("/v1/chat/completions", json={**CHAT, "n": 3, "stream": True})
        await until(lambda: len(inference.closed) == 6)
    events = events_of(streamed.text)
    assert [event["error"]["code"] for event in events if "error" in event] == [code]
    assert "error" in events[-1]
    assert "[DONE]" not in streamed.text


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_closes_every_choice(tmp_path: Path, stream: bool) -> None:
    inference = scripted(*[[delta("x"), asyncio.Event()]] * 5)
    async with serving(tmp_path, inference) as (_, port):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({**CHAT, "n": 5, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: inference.sent == 5)
        writer.close()
        await until(lambda: len(inference.closed) == 5)
        await until(lambda: not choice_tasks())
        assert inference.strangers == 0


async def test_a_client_that_does_not_read_holds_its_choices_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CHOICE_EVENTS_MAX", 8)
    text = "x" * 100_000
    inference = scripted(*[[delta(text)] * 1000] * 2)
    async with serving(tmp_path, inference) as (_, port):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        body = json.dumps({**CHAT, "n": 2, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        before = -1
        while before != inference.sent:  # until nothing moves any more
            before = inference.sent
            await asyncio.sleep(0.1)
        assert 0 < inference.sent < 500, "the rest of 2000 waits; what is sent fills the sockets' buffers"
        writer.transport.abort()
        await until(lambda: len(inference.closed) == 2)
