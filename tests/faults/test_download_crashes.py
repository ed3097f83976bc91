"""Downloads whose process or machine dies, and what damaged files they find: real processes, killed for real."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmlb.bus.errors import Conflict
from llmlb.node.pull.partial import BLOCK, HEADER_BYTES, Partial
from llmlb.node.store.bundled import bundled_path
from llmlb.node.store.gguf import read_gguf
from tests.support.download_site import (
    MIB,
    REPO,
    Site,
    download_site,
    interrupted,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with download_site(tmp_path) as made:
        yield made


CHILD = """
import asyncio, sys
from pathlib import Path
from llmlb.node.pull.download import HubSource, download
from llmlb.node.pull.hub import Hub
from llmlb.bus.hub_names import Wanted

endpoint, target, oid, path = sys.argv[1:]
source = HubSource(Hub(endpoint), Wanted("own", "model"), "main", path)
print(asyncio.run(download(source, Path(target), oid=oid)).fetched_bytes, flush=True)
"""


@contextlib.contextmanager
def child(site: Site, oid: str, file: str) -> Iterator[subprocess.Popen[str]]:
    """A download in a process of its own, which does not outlive the test."""
    command = [sys.executable, "-c", CHILD, site.hub.url, str(site.target), oid, file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def killed(site: Site, oid: str, file: str, after: int) -> None:
    """A download killed with -9 after so many bytes in all."""
    with child(site, oid, file) as process:
        site.hub.wait_served(after)
        process.kill()


def finished(site: Site, oid: str, file: str) -> None:
    site.hub.release()
    with child(site, oid, file) as process:
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0, out


def test_after_kill_9_the_rest_is_fetched_and_little_of_it_twice(site: Site) -> None:
    path = bundled_path()
    assert path is not None, "make setup installs it"
    large = site.hub.add(REPO, {"SmolLM2-Q4_1.gguf": path})["SmolLM2-Q4_1.gguf"]
    for after in (30 * MIB, 70 * MIB):
        site.hub.budget = after - site.hub.served()
        killed(site, large.sha256, large.path, after)
    finished(site, large.sha256, large.path)
    site.check(path.read_bytes())
    assert read_gguf(site.target).architecture == "llama"
    assert 0 <= site.hub.served() - large.size <= 2 * 8 * MIB


def test_kill_9_in_full_run_costs_at_most_8_mib(site: Site) -> None:
    """The hub does not hold back, so the kernel's buffers are as full as they get."""
    data = random.Random(5).randbytes(128 * MIB)
    large = site.hub.add(REPO, {"large-Q8_0.gguf": data})["large-Q8_0.gguf"]
    killed(site, large.sha256, large.path, 48 * MIB)
    finished(site, large.sha256, large.path)
    site.check(data)
    assert 0 <= site.hub.served() - large.size <= 8 * MIB


async def test_after_a_crash_of_the_machine_only_what_was_synced_counts(site: Site) -> None:
    await interrupted(site, 4 * MIB)
    path = site.folder / "model.gguf.part.map"
    content = bytearray(path.read_bytes())
    header = json.loads(content[:HEADER_BYTES])
    content[:HEADER_BYTES] = json.dumps(header | {"boot": "another-start"}).encode().ljust(HEADER_BYTES)
    synced = [at for at in range(HEADER_BYTES, len(content)) if content[at] == 2]
    assert len(synced) >= 20, "cancelling syncs"
    lost = synced[0] - HEADER_BYTES
    content[synced[0]] = 1
    path.write_bytes(content)
    with site.part.open("r+b") as file:
        file.seek(lost * BLOCK)
        file.write(bytes(BLOCK))
    site.hub.release()
    await site.pull()
    site.check()
    assert not site.notes, "the lost block was fetched again, not found wrong"


@pytest.mark.parametrize("damage", ["empty map", "garbage map", "no part", "short part", "flipped bytes"])
async def test_a_damaged_partial_file_does_not_lead_to_a_wrong_one(site: Site, damage: str) -> None:
    await interrupted(site, 3 * MIB)
    path = site.folder / "model.gguf.part.map"
    if damage == "no part":
        site.part.unlink()
    elif damage == "short part":
        os.truncate(site.part, MIB)
    elif damage == "flipped bytes":
        with site.part.open("r+b") as file:
            file.write(b"\xff" * BLOCK)
    else:
        path.write_bytes(b"" if damage == "empty map" else os.urandom(9000))
    site.hub.release()
    await site.pull()
    site.check()


def test_a_lock_outlives_the_removal_of_its_file(tmp_path: Path) -> None:
    first, second = Partial(tmp_path / "f"), Partial(tmp_path / "f")
    first.open()
    first.resume("e", 0)
    first.finish()
    second.open()
    third = Partial(tmp_path / "f")
    with pytest.raises(Conflict):
        third.open()
    first.close()
    with pytest.raises(Conflict):
        third.open()
    second.close()
    third.open()
    third.close()
