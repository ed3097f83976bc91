"""A router and a simulated node for clients that mean harm, or know no better."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.cluster import Process, wait_until
from tests.support.simcluster import SimCluster, running, simcluster

MODEL = "simulated/hostile"
CHAT = "/v1/chat/completions"
PATIENCE_S = 2.0
IDLE_S = 6.0
SLOTS = 2


@contextlib.contextmanager
def hostile_site(root: Path, **settings: str) -> Iterator[SimCluster]:
    """A router without much patience, and a node of two slots. At the end: nobody got a traceback out of it.

    ``settings``: the router's.
    """
    with simcluster(root, LLMLB_CLIENT_TIMEOUT=f"{PATIENCE_S}s", LLMLB_IDLE_TIMEOUT=f"{IDLE_S}s") as it:
        router = it.start_router(**settings)
        node = it.start_node("node", f"--slots={SLOTS}", "--tokens-per-s=200", model=MODEL)
        it.wait_ready(router, node)
        yield it
        said = router.output()
        for word in ("Traceback", "exception", "uncaught", "not consumed"):
            at = said.find(word)
            assert at < 0, said[max(0, at - 500) : at + 5000]


def chat(tokens: int = 3, *, stream: bool = False, **more: Any) -> bytes:
    """The body of a good request."""
    messages = [{"role": "user", "content": "x"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": stream, **more}
    return json.dumps(body).encode()


def good(router: Process) -> None:
    """A good request is answered."""
    answer = httpx.post(f"{router.url}{CHAT}", content=chat(), timeout=20)
    assert answer.status_code == 200, answer.text


def unharmed(site: SimCluster) -> None:
    """It serves, and nothing runs."""
    router = site.routers[0]
    good(router)
    wait_until(lambda: running(router).get(site.nodes[0].node_id) == 0, 20, "every slot is free")


def resident_bytes(router: Process) -> int:
    """Memory of the process."""
    return int(Path(f"/proc/{router.popen.pid}/statm").read_text().split()[1]) * 4096
