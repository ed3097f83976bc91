"""kill -9 at any moment of a pull, again and again: the store is never half of anything, and the end is right."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Store
from llmlb.node.store.local import LocalSource
from tests.support import pull_child
from tests.support.hub import LocalHub
from tests.support.pulls import MIB, gguf_bytes

REPO = "own/model"
FILES = {
    "model-Q4_K_M-00001-of-00002.gguf": gguf_bytes(18 * MIB + 77, seed=11),
    "model-Q4_K_M-00002-of-00002.gguf": gguf_bytes(12 * MIB + 5, seed=12),
    "mmproj-F16.gguf": gguf_bytes(MIB, seed=13),
}
KILLS = 10
LONGEST_S = 0.9
"""Of a whole pull, as the hub is throttled, some more: a kill then falls into each of its parts."""
KNOWN = (".part", ".part.map", ".gguf", ".json", ".tmp")


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """It sends 60 MiB a second."""
    with LocalHub() as made:
        made.add(REPO, FILES)
        made.budget = 0
        over = threading.Event()

        def dole_out() -> None:
            while not over.wait(0.01):
                with made._room:
                    made.budget = 640 * 1024
                    made._room.notify_all()

        doling = threading.Thread(target=dole_out)
        doling.start()
        yield made
        over.set()
        doling.join()


def begun(hub: LocalHub, models: Path) -> BaseProcess:
    """A pull in a process that is forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([pull_child.__name__, "huggingface_hub", "httpx2"])
    process = context.Process(target=pull_child.pull, args=(hub.url, models, REPO), daemon=True)
    process.start()
    return process


def check(models: Path) -> bool:
    """The store as a node finds it that starts now: the model whole or not there. True: it is there."""
    Store(models).recover()
    catalog = Catalog([LocalSource(models)])
    found = catalog.models()
    assert [model.name for model in found] in ([], [REPO])
    odd = [path for path in (models / ".pulling").rglob("*") if path.is_file() and not path.name.endswith(KNOWN)]
    assert not odd
    if found:
        for name, data in FILES.items():
            content = (models / REPO / name).read_bytes()
            assert hashlib.sha256(content).digest() == hashlib.sha256(data).digest(), name
    return bool(found)


def killed_at_random(hub: LocalHub, models: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(kills):
        process = begun(hub, models)
        seen = len(hub.seen)
        deadline = time.monotonic() + 20
        while process.is_alive() and len(hub.seen) == seen and time.monotonic() < deadline:
            time.sleep(0.002)
        process.join(chance.uniform(0, LONGEST_S))
        process.kill()
        process.join(10)
        if check(models) and chance.random() < 0.8:
            catalog = Catalog([LocalSource(models)])
            Store(models).remove(catalog.resolve(REPO))  # and once more from the beginning


def test_kill_9_at_any_moment_leaves_a_store_that_is_whole(hub: LocalHub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    killed_at_random(hub, models, KILLS, seed=4)
    hub.release()
    last = begun(hub, models)
    last.join(60)
    assert last.exitcode == 0
    assert check(models)
    assert not list(models.rglob("*.part*"))
    assert not list(models.rglob("*.tmp"))
    assert not (models / ".pulling").exists()
