"""200 requests of every kind at the same time: each whole answer is the one that the same request gets alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.cluster import Process, cluster, wait_until

REQUESTS = 200
SLOTS = 12
"""With 16 waiting places a slot, as many as there are requests."""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with cluster(
        tmp_path_factory.mktemp("mixed"),
        LLMLB_NUM_PARALLEL=str(SLOTS),
        LLMLB_CONTEXT_LENGTH="768",
        LLMLB_QUEUE_MAX="400",
        LLMLB_QUEUE_TIMEOUT="240s",  # on a machine that has other things to do, too
    ) as it:
        process = it.start("serve", home="one").wait_ready()
        wait_until(lambda: httpx.get(f"{process.url}/v1/models").json()["data"], 10, "the node has joined")
        yield process


def good(number: int) -> dict[str, Any]:
    """One of sixteen requests: short and long prompts, some with a prefix in common, one in three seeded.

    Most prompts and answers are short: what takes time here is the computing, and what is looked for is the mixing up.
    """
    shared = "You are a helpful assistant of the harbour office. Ships come and go. " * 5
    subject = ["boats", "bread", "birds", "music", "rain", "numbers", "trees", "trains"][number % 8]
    messages = [{"role": "user", "content": f"Tell me about {subject}. " + "Be exact. " * (number % 5)}]
    if number % 4 != 3:  # those have the template's own
        messages.insert(0, {"role": "system", "content": shared if number % 4 == 1 else "Be brief."})
    body: dict[str, Any] = {"model": "smollm2", "messages": messages, "max_tokens": 4 + number // 4, "temperature": 0}
    if number % 3 == 0:
        body.update(temperature=1.0, seed=number)
    return body


def bad(number: int) -> dict[str, Any]:
    return [
        {**good(0), "temperature": 9},
        {**good(0), "messages": [{"role": "user", "content": "far too long " * 2000}]},
        {**good(0), "model": "nobody/has-this"},
        {**good(0), "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/x"}}}},
    ][number % 4]


async def whole(client: httpx.AsyncClient, number: int) -> str:
    response = await client.post("/v1/chat/completions", json=good(number))
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def streamed(client: httpx.AsyncClient, number: int) -> str:
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json={**good(number), "stream": True}) as response:
        assert response.status_code == 200
        done = False
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            done = done or line == "data: [DONE]"
    assert done
    return text


async def abandoned(client: httpx.AsyncClient, number: int) -> None:
    """A client that goes away: while it waits, or after some events."""
    body = {**good(number), "max_tokens": 200, "stream": number % 2 == 0}
    try:
        async with asyncio.timeout(random.Random(number).uniform(0.01, 3)):
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                async for _ in response.aiter_bytes():
                    pass
    except TimeoutError:
        pass


async def refused(client: httpx.AsyncClient, number: int) -> int:
    response = await client.post("/v1/chat/completions", json=bad(number))
    assert response.json()["error"]["message"]
    return response.status_code


@pytest.mark.timeout(300)
async def test_each_of_200_mixed_requests_gets_what_it_gets_alone(process: Process) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=process.url, timeout=300, limits=limits) as client:
        alone = {number: await whole(client, number) for number in range(16)}
        assert len(set(alone.values())) > 8
        order = [
            (kind, number) for number in range(REQUESTS // 5) for kind in ("whole", "stream", "whole", "go", "bad")
        ]
        random.Random(1).shuffle(order)
        works: dict[str, Any] = {"whole": whole, "stream": streamed, "go": abandoned, "bad": refused}
        results = await asyncio.gather(
            *(works[kind](client, number % 16 if kind != "go" else number) for kind, number in order)
        )
    seen: Counter[str] = Counter()
    for (kind, number), result in zip(order, results, strict=True):
        if kind in ("whole", "stream"):
            assert result == alone[number % 16], f"{kind} {number}"
        elif kind == "bad":
            assert result in (400, 404)
        seen[kind] += 1
    assert seen == {"whole": 80, "stream": 40, "go": 40, "bad": 40}

    def idle() -> bool:
        (model,) = httpx.get(f"{process.node_url}/v0/ps").json()["models"]
        return bool(model["running"] + model["queued"] == 0)

    wait_until(idle, 10, "every slot is free again")
    assert "Traceback" not in process.output()
