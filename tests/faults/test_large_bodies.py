"""Bodies of up to 100 MB: they reach a node through the bus's object store, and nothing of them stays there."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import nats
import pytest

from llmlb.bus import subjects
from tests.support.cluster import Process, wait_until
from tests.support.hostile import CHAT, MODEL
from tests.support.raw_http import RawClient, request
from tests.support.simcluster import SimCluster, running, simcluster

IMAGES = 30


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCluster]:
    """A router that takes 100 MB, and a node."""
    with simcluster(tmp_path_factory.mktemp("large"), LLMLB_STALL_TIMEOUT="20s") as it:
        router = it.start_router(LLMLB_MAX_BODY="100MB")
        node = it.start_node("node", "--slots=4", "--tokens-per-s=200", model=MODEL)
        it.wait_ready(router, node)
        yield it
        assert "Traceback" not in router.output() + node.output()


def image(number: int, size: int) -> dict[str, Any]:
    """A part with bytes that nobody can guess or pack."""
    block = hashlib.sha256(str(number).encode()).digest()
    data = base64.b64encode((block * (size // len(block) + 1))[:size]).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def body(total: int, *, last: str = "x", tokens: int = 3, **more: Any) -> bytes:
    """A chat with images, of about this many bytes."""
    parts = [image(at, total // IMAGES * 3 // 4) for at in range(IMAGES)]
    messages = [{"role": "user", "content": [{"type": "text", "text": last}, *parts]}]
    return json.dumps({"model": MODEL, "messages": messages, "max_tokens": tokens, "seed": 1, **more}).encode()


def stored_bytes(site: SimCluster) -> int:
    """What the object store holds."""

    async def look() -> int:
        client = await nats.connect(f"nats://127.0.0.1:{site.bus.port}")
        try:
            store = await client.jetstream().object_store(subjects.BUCKET_BULK)
            return (await store.status()).size
        finally:
            await client.close()

    return asyncio.run(look())


def nothing_left(site: SimCluster) -> None:
    """Marks of what was there stay for a while: a few hundred bytes each."""
    wait_until(lambda: stored_bytes(site) < 10_000, 20, "the objects are deleted")


def ask(router: Process, data: bytes) -> httpx.Response:
    return httpx.post(f"{router.url}{CHAT}", content=data, timeout=60)


def test_a_body_of_90_mb_with_images_reaches_the_node_and_is_removed(site: SimCluster) -> None:
    data = body(90_000_000)
    assert 88_000_000 < len(data) < 92_000_000
    answer = ask(site.routers[0], data)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 3
    nothing_left(site)


def test_the_node_gets_what_was_sent(site: SimCluster) -> None:
    """The simulated answer depends on the prompt: the same text among little and among much."""
    words = "y" * 12_000_000
    texts = []
    for last in ("a", "b"):
        prompt = [{"role": "user", "content": words + last}]
        data = json.dumps({"model": MODEL, "messages": prompt, "max_tokens": 8, "seed": 1}).encode()
        texts.append(ask(site.routers[0], data).json()["choices"][0]["message"]["content"])
    assert texts[0] != texts[1], "the last character counts"


def test_several_at_a_time_and_small_ones_between_them(site: SimCluster) -> None:
    data, small = body(12_000_000), body(1000)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda one: ask(site.routers[0], one), [data, small, data, small, data, small]))
    assert [answer.status_code for answer in answers] == [200] * 6
    nothing_left(site)


def test_who_goes_away_while_it_is_on_its_way_leaves_nothing(site: SimCluster) -> None:
    router, node = site.routers[0], site.nodes[0]
    data = request(CHAT, body(30_000_000, tokens=50_000, stream=True))
    for until in (b"", b"data: "):
        client = RawClient(router.router_port or 0)
        client.send(data)
        client.until(until)
        client.close()
    wait_until(lambda: running(router).get(node.node_id) == 0, 20, "every slot is free")
    assert ask(router, body(1000)).status_code == 200
    nothing_left(site)


def test_one_byte_over_the_limit_is_refused(site: SimCluster) -> None:
    assert ask(site.routers[0], body(1000) + b" " * 100_000_000).status_code == 413
