"""Downloads from a hub that misbehaves: every failure of issue 4, except those where a process or a machine dies."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.errors import Conflict, Forbidden, OutOfDisk, PullFailed
from llmlb.node.pull import partial as partial_module
from llmlb.node.pull.fetch import Limits
from llmlb.node.pull.partial import BLOCK, HEADER_BYTES
from tests.support.download_site import (
    DATA,
    FILE,
    MIB,
    OID,
    REPO,
    SIZE,
    Site,
    download_site,
    interrupted,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with download_site(tmp_path) as made:
        yield made


async def test_a_file_comes_in_ranges_each_byte_once(site: Site) -> None:
    done = await site.pull()
    site.check()
    assert (done.size, done.oid, done.fetched_bytes) == (SIZE, OID, SIZE)
    assert site.hub.served() == SIZE
    assert len(site.hub.requests("cdn")) == 7
    assert len({seen.range for seen in site.hub.requests("cdn")}) == 7
    assert site.progress[-1].done_bytes == site.progress[-1].verified_bytes == site.progress[-1].total_bytes == SIZE
    assert (await site.pull()).fetched_bytes == 0, "what is whole is not fetched again"
    assert site.hub.served() == SIZE


async def test_a_server_that_sends_slowly_is_asked_over_several_connections(site: Site) -> None:
    site.hub.misbehave(times=100, pause_s=0.02)
    await site.pull()
    site.check()
    asked = sorted(site.hub.requests("cdn"), key=lambda seen: seen.at)
    # A MiB takes a third of a second: those that follow one another come so far apart.
    assert min(later.at - one.at for one, later in itertools.pairwise(asked)) < 0.3
    assert sum(seen.sent for seen in asked) == SIZE


async def test_small_and_empty_files_come_too(site: Site) -> None:
    blob = site.hub.repos[REPO].commits[site.hub.repos[REPO].head]["config.json"].blob_id
    done = await site.pull(oid=blob, file="config.json")
    assert done.oid == blob
    site.check(b'{"a": 1}')
    site.hub.add(REPO, {"empty.txt": b"", "empty.bin": b""})
    for file in ("empty.txt", "empty.bin"):
        await site.pull(oid=None, file=file)
        site.check(b"")


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ({"cut_after": 300_000}, 12),
        ({"cut_after": 0}, 3),
        ({"stall_after": 200_000}, 3),
        ({"stall_after": 0}, 1),
        ({"status": 429, "retry_after": "0"}, 5),
        ({"status": 500}, 5),
        ({"status": 502}, 5),
        ({"status": 503, "retry_after": "0"}, 2),
        ({"expire": True}, 5),
        ({"headers": {"Content-Range": "bytes 0-9/10"}}, 1),
        ({"headers": {"ETag": '"another-edge"'}}, 2),
    ],
    ids=str,
)
async def test_trouble_that_passes_is_waited_for(site: Site, fault: dict[str, Any], times: int) -> None:
    site.hub.misbehave(times=times, **fault)
    await site.pull()
    site.check()
    assert not site.notes
    assert site.hub.served() <= SIZE + 2 * MIB


async def test_the_reason_of_a_wait_is_in_the_progress(site: Site) -> None:
    site.hub.misbehave(times=1, status=503, retry_after="1")
    await site.pull(limits=Limits(connections=1, backoff_first_s=0.02))
    site.check()
    assert any("503" in (each.trouble or "") for each in site.progress)
    assert site.progress[-1].trouble is None


async def test_retry_after_is_honoured(site: Site) -> None:
    site.hub.misbehave(status=429, retry_after="1")
    await site.pull(limits=Limits(connections=1, segment_bytes=64 * MIB, backoff_first_s=0.02))
    first, second = site.hub.requests("cdn")[:2]
    assert second.at - first.at >= 1
    site.check()


async def test_trouble_of_the_hub_itself_is_waited_for(site: Site) -> None:
    site.hub.misbehave(where="resolve", status=500, times=2)
    site.hub.misbehave(where="resolve", status=429, retry_after="0")
    await site.pull()
    site.check()


async def test_an_address_that_expires_on_the_way_is_renewed(site: Site) -> None:
    site.hub.budget = 2 * MIB
    task = asyncio.ensure_future(site.pull())
    await asyncio.to_thread(site.hub.wait_served, 2 * MIB)
    site.hub.expire_links()
    site.hub.release()
    await task
    site.check()
    assert len(site.hub.requests("resolve")) == 2, "asked once for all connections"
    assert site.hub.served() == SIZE


async def test_a_storage_that_refuses_for_good_ends_the_download(site: Site) -> None:
    site.hub.misbehave(times=1000, expire=True)
    with pytest.raises(Forbidden, match="refuses"):
        await site.pull()
    assert site.part.exists()


async def test_a_server_without_ranges_is_read_in_one_go(site: Site) -> None:
    site.hub.misbehave(times=1000, ignore_range=True)
    await site.pull()
    site.check()
    assert site.hub.served() == SIZE
    assert len(site.hub.requests("cdn")) == 1


async def test_a_server_that_forgets_ranges_on_the_way_is_read_on(site: Site) -> None:
    site.hub.misbehave(times=2)
    site.hub.misbehave(times=1000, ignore_range=True)
    await site.pull()
    site.check()
    assert site.hub.served() <= 4 * SIZE


async def test_a_server_without_ranges_that_cuts_is_read_from_the_beginning_and_kept(site: Site) -> None:
    site.hub.misbehave(times=4, ignore_range=True, cut_after=3 * MIB)
    site.hub.misbehave(times=1000, ignore_range=True)
    await site.pull()
    site.check()


async def test_content_that_changed_on_the_hub_is_fetched_from_the_beginning_and_says_why(site: Site) -> None:
    site.hub.budget = 3 * MIB
    task = asyncio.ensure_future(site.pull())
    await asyncio.to_thread(site.hub.wait_served, 3 * MIB)
    other = DATA[::-1] + b"more"
    site.hub.swap(REPO, FILE, other)
    site.hub.expire_links()
    site.hub.release()
    done = await task
    site.check(other)
    assert done.oid == hashlib.sha256(other).hexdigest()
    assert any("changed on the hub" in note for note in site.notes)


async def test_a_partial_file_of_older_content_is_not_gone_on_with(site: Site) -> None:
    await interrupted(site, 2 * MIB)
    other = bytes(reversed(DATA))
    site.hub.swap(REPO, FILE, other)
    site.hub.release()
    await site.pull(oid=hashlib.sha256(other).hexdigest())
    site.check(other)
    assert any("has changed on the hub (ETag" in note for note in site.notes)


async def test_cancelling_keeps_what_came_and_frees_the_lock(site: Site) -> None:
    await interrupted(site, 4 * MIB)
    assert site.part.stat().st_size == SIZE
    assert not site.target.exists()
    site.hub.release()
    before = site.hub.served()
    done = await site.pull()
    site.check()
    assert done.fetched_bytes <= SIZE - 4 * MIB + 3 * (BLOCK + 512 * 1024)
    # The hub counts what it handed to its socket: cut connections had some of it still in their buffers.
    assert site.hub.served() - before <= done.fetched_bytes + 2 * MIB
    for thread in threading.enumerate():
        if thread.name.startswith("llmlb-pull"):
            thread.join(2)
            assert not thread.is_alive(), thread.name


async def test_wrong_bytes_once_are_fetched_once_more(site: Site) -> None:
    site.hub.misbehave(wrong_bytes=True)
    await site.pull()
    site.check()
    assert site.notes == ["the sha256 of model.gguf is wrong: it is fetched once more"]
    assert site.hub.served() == 2 * SIZE


async def test_wrong_bytes_twice_end_the_download(site: Site) -> None:
    site.hub.misbehave(wrong_bytes=True, times=1000)
    with pytest.raises(PullFailed, match=r"sha256 of model\.gguf is wrong twice"):
        await site.pull()
    assert not list(site.folder.iterdir())
    site.hub.behave()
    await site.pull()
    site.check()


async def test_a_full_disk_ends_the_download_and_keeps_what_came(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = os.pwrite, [0]

    def pwrite(fd: int, data: Any, offset: int) -> int:
        written[0] += len(data)
        if len(data) > HEADER_BYTES and written[0] > 3 * MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(partial_module.os, "pwrite", pwrite)
    with pytest.raises(OutOfDisk, match="disk is full"):
        await site.pull()
    monkeypatch.undo()
    done = await site.pull()
    site.check()
    assert done.fetched_bytes <= SIZE - 2 * MIB


async def test_a_file_that_will_not_fit_is_refused_before_the_first_byte(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = partial_module.shutil.disk_usage(site.folder.parent)
    monkeypatch.setattr(partial_module.shutil, "disk_usage", lambda _: usage._replace(free=5 * MIB))
    with pytest.raises(OutOfDisk) as raised:
        await site.pull()
    assert str(SIZE) in raised.value.message
    assert str(5 * MIB) in raised.value.message
    assert not site.hub.requests("cdn")


async def test_two_downloads_never_write_one_file(site: Site) -> None:
    site.hub.budget = MIB
    task = asyncio.ensure_future(site.pull())
    await asyncio.to_thread(site.hub.wait_served, MIB)
    with pytest.raises(Conflict, match="being downloaded already"):
        await site.pull()
    site.hub.release()
    await task
    site.check()
