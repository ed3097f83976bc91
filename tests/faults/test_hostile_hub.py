"""A hub that means harm, or is broken in odd ways: where it sends to, what it names files, which sizes it tells."""

from __future__ import annotations

import gzip
import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from llmlb.bus.errors import ConfigError, InvalidRequest, OutOfDisk, PullFailed
from llmlb.bus.hub_names import Wanted, parse_name
from llmlb.bus.hub_plan import MAX_FILES, RepoFile, plan
from llmlb.bus.settings import Settings
from llmlb.node.pull.download import HubSource, download
from llmlb.node.pull.fetch import Limits
from llmlb.node.pull.hub import Hub, mapped, public
from llmlb.node.pull.partial import Partial
from tests.support.hub import LocalHub

WANTED = Wanted("own", "model")
FILE = "model-Q4_K_M.gguf"
DATA = bytes(range(256)) * 2000
OID = hashlib.sha256(DATA).hexdigest()
QUICK = Limits(connections=2, stall_s=1, connect_s=1, backoff_first_s=0.02, backoff_most_s=0.05)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as made:
        made.add("own/model", {FILE: DATA, "config.json": b"{}"})
        yield made


async def fetched(hub: LocalHub, folder: Path, file: str = FILE, token: str | None = None) -> bytes:
    source = HubSource(Hub(hub.url, token, timeout_s=1), WANTED, "main", file)
    await download(source, folder / "m.gguf", oid=OID if file == FILE else None, limits=QUICK)
    return (folder / "m.gguf").read_bytes()


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
@pytest.mark.parametrize("where", ["resolve", "cdn"])
async def test_only_http_is_read(hub: LocalHub, tmp_path: Path, where: str, place: str) -> None:
    told = {"X-Linked-Size": "10", "X-Linked-ETag": f'"{OID}"', "X-Repo-Commit": "a" * 40}
    hub.misbehave(where=where, status=302, times=1000, headers={"Location": place, **told})
    with pytest.raises(PullFailed, match="not http"):
        await fetched(hub, tmp_path)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("where", ["api", "cdn"])
async def test_a_token_does_not_follow_to_another_host(hub: LocalHub, tmp_path: Path, where: str) -> None:
    with LocalHub() as other:
        other.add("own/model", {"config.json": b'{"their": 1}'})
        elsewhere = f"{other.url.replace('127.0.0.1', 'localhost')}/api/models/own/model"
        if where == "cdn":
            hub.misbehave(where=where)  # the question where the file is comes by here
        hub.misbehave(where=where, status=302, headers={"Location": elsewhere})
        access = Hub(hub.url, "hf_good", timeout_s=1)
        if where == "api":
            await access.listing(WANTED)
        else:
            assert await fetched(hub, tmp_path, "config.json", "hf_good") == b"{}", "as soon as it comes from the hub"
        assert other.seen, "it was sent there"
        assert {seen.authorization for seen in other.seen} == {None}
        assert "Bearer hf_good" in {seen.authorization for seen in hub.seen}


@pytest.mark.parametrize("size", [10**13, 2**60])
def test_a_size_that_is_a_lie_costs_no_memory(tmp_path: Path, size: int) -> None:
    partial = Partial(tmp_path / "m.gguf")
    partial.open()
    tracemalloc.start()
    try:
        with pytest.raises(OutOfDisk, match=str(size)):
            partial.resume("etag", size)
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()
        partial.close()
    assert sum(path.stat().st_blocks for path in tmp_path.iterdir()) * 512 < 64 * 1024


async def test_bytes_that_come_compressed_though_nobody_asked_are_right(hub: LocalHub, tmp_path: Path) -> None:
    """As a proxy in between may do it: without ranges, and of no use as a length."""
    squeezed = LocalHub()
    with squeezed:
        squeezed.add("own/model", {FILE: gzip.compress(DATA)})
        place = squeezed.sign(squeezed.repos["own/model"].commits[squeezed.repos["own/model"].head][FILE], "own/model")
        told = {"X-Linked-Size": str(len(DATA)), "X-Linked-ETag": f'"{OID}"', "X-Repo-Commit": "a" * 40}
        hub.misbehave(where="resolve", status=302, times=1000, headers={"Location": place, **told})
        squeezed.misbehave(times=1000, ignore_range=True, headers={"Content-Encoding": "gzip"})
        assert await fetched(hub, tmp_path) == DATA
    asked = {seen.range for seen in squeezed.requests("cdn")}
    assert len(asked) == 1


@pytest.mark.parametrize(
    "path",
    [
        *("../../evil-Q4_K_M.gguf", "/etc/evil-Q4_K_M.gguf", "a/../../evil-Q4_K_M.gguf", "a\\..\\evil-Q4_K_M.gguf"),
        *("evil\n-Q4_K_M.gguf", "evil\0-Q4_K_M.gguf", ".evil-Q4_K_M.gguf", "x" * 250 + ".gguf", "\ud800-Q4_K_M.gguf"),
    ],
)
def test_a_name_that_is_none_is_no_file_of_a_model(path: str) -> None:
    with pytest.raises(PullFailed, match="no model inside"):
        plan(WANTED, [RepoFile(path, 10, OID)], "c" * 40)


@pytest.mark.parametrize("path", ["mödel 模型-Q4_K_M.gguf", "a b'c\"d$(e)-Q4_K_M.gguf", "\u202egpj-Q4_K_M.gguf"])
def test_a_name_in_any_writing_is_a_name(tmp_path: Path, path: str) -> None:
    (file,) = plan(WANTED, [RepoFile(path, 10, OID)], "c" * 40).files
    assert os.path.dirname(file.local) == ""
    (tmp_path / file.local).write_bytes(b"x")


def test_a_huge_listing_is_chosen_from_and_not_recited() -> None:
    many = [RepoFile(f"m{number}-Q{number % 9}_{number % 7}.gguf", 10, OID) for number in range(20_000)]
    assert plan(WANTED, many, "c" * 40).files
    with pytest.raises(PullFailed) as raised:
        plan(Wanted("own", "model", quant="Q99"), many, "c" * 40)
    assert len(raised.value.message) < 2_000
    shards = [RepoFile(f"m-{number:05}-of-{MAX_FILES + 1:05}.gguf", 1, OID) for number in range(1, MAX_FILES + 2)]
    with pytest.raises(PullFailed, match="more than"):
        plan(WANTED, shards, "c" * 40)


def test_what_is_secret_in_an_address_is_not_told() -> None:
    endpoint = "https://me:secret@hub.example/mirror"
    error = httpx2.ConnectError("no way to https://me:secret@hub.example/x?Signature=abc&Expires=1 today")
    for has_token in (True, False):
        told = mapped(error, WANTED, endpoint, has_token=has_token)
        assert "secret" not in str(vars(told))
        assert "hub.example" in str(told)
    assert public("see http://a:b@h/p?q=1, or 'https://h/x?y'") == "see http://h/p or 'https://h/x'"
    with pytest.raises(InvalidRequest) as raised:
        parse_name("https://elsewhere.example/own/model", endpoint)
    assert "secret" not in raised.value.message
    assert parse_name("https://hub.example/own/model", endpoint) == WANTED


@pytest.mark.parametrize("token", ["hf_a b", "hf_a\nX-Evil: 1", "hf_ä", "\u201chf_a\u201d"])
def test_a_token_that_can_be_none_is_refused_at_the_start_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Settings.load({"HF_TOKEN": token})
    assert "hf_" not in raised.value.message
    assert Settings.load({"HF_TOKEN": " hf_good\n"}).hf_token == "hf_good"
