"""A pull in a process of its own, to be killed: job, store and downloads of a node, without bus and node."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from llmlb.bus.hub_names import parse_name
from llmlb.bus.messages.pulls import PullProgress
from llmlb.node.pull.hub import Hub
from llmlb.node.pull.job import Means, PullJob
from llmlb.node.pull.room import Room
from llmlb.node.store.installed import Installed, Store


def pull(endpoint: str, models: Path, model: str) -> None:
    """As a node does that starts: end what was begun, then pull. Its exit code is 0 when the model is there."""
    models.mkdir(parents=True, exist_ok=True)
    store = Store(models)
    store.recover()
    means = Means(hub=Hub(endpoint), store=store, room=Room(models), names=tuple, alias_of=lambda _: None)
    start = PullProgress(
        task_id="0" * 16, node_id="n", model=model, status="pending", phase="waiting", started_at=time.time()
    )
    installed = asyncio.run(PullJob(means, parse_name(model), start, lambda _: None).run())
    assert isinstance(installed, Installed)
