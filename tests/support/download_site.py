"""A hub with one model, and downloads of it into a folder."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmlb.bus.hub_names import Wanted
from llmlb.node.pull.download import Downloaded, HubSource, Progress, download
from llmlb.node.pull.fetch import Limits
from llmlb.node.pull.hub import Hub
from tests.support.hub import LocalHub

MIB = 1024 * 1024
REPO, FILE = "own/model", "model-Q4_K_M.gguf"
WANTED = Wanted("own", "model")
SIZE = 6 * MIB + 12_345
DATA = random.Random(4).randbytes(SIZE)
OID = hashlib.sha256(DATA).hexdigest()
QUICK = Limits(connections=3, segment_bytes=MIB, stall_s=0.4, connect_s=2, backoff_first_s=0.02, backoff_most_s=0.1)


class Site:
    """A hub with one model, and downloads of it into a folder."""

    def __init__(self, hub: LocalHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.access = Hub(hub.url, timeout_s=2)
        self.target = folder / "model.gguf"
        self.notes: list[str] = []
        self.progress: list[Progress] = []

    @property
    def part(self) -> Path:
        return self.folder / "model.gguf.part"

    async def pull(self, oid: str | None = OID, limits: Limits = QUICK, file: str = FILE) -> Downloaded:
        return await download(
            HubSource(self.access, WANTED, "main", file),
            self.target,
            oid=oid,
            limits=limits,
            on_progress=self.progress.append,
            on_note=self.notes.append,
        )

    def check(self, content: bytes = DATA) -> None:
        assert self.target.read_bytes() == content
        assert [path.name for path in self.folder.iterdir()] == ["model.gguf"]


@contextlib.contextmanager
def download_site(folder: Path) -> Iterator[Site]:
    with LocalHub() as hub:
        hub.add(REPO, {FILE: DATA, "config.json": b'{"a": 1}'})
        yield Site(hub, folder / "store")


async def interrupted(site: Site, after: int) -> None:
    """A download that was cancelled after so many bytes."""
    site.hub.budget = after
    task = asyncio.ensure_future(site.pull())
    await asyncio.to_thread(site.hub.wait_served, after)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 2
