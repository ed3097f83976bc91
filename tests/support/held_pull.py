"""One repo on a local hub, and a pull of it that is held half way: what the tests of pulls as tasks begin with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.support.hub import LocalHub
from tests.support.pulls import MIB, PullNode, gguf_bytes

REPO, FILE = "own/model", "model-Q4_K_M.gguf"
DATA = gguf_bytes(3 * MIB + 77)
DATA_Q8 = gguf_bytes(2 * MIB + 5, "Q8_0", seed=2)


@contextlib.contextmanager
def pull_hub() -> Iterator[LocalHub]:
    with LocalHub() as made:
        made.add(REPO, {FILE: DATA, "model-Q8_0.gguf": DATA_Q8, "README.md": b"hello"})
        yield made


async def held(node: PullNode, budget: int = MIB, model: str = REPO) -> str:
    """A pull that has got ``budget`` bytes and waits for more; its task id."""
    node.hub.budget = budget
    started = await node.rpc.pull(model)
    await node.until(started.task.task_id, lambda task: task.downloaded_bytes > 0)
    return started.task.task_id
