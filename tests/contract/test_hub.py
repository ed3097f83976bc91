"""The real huggingface_hub against the local hub, and llmlb's access to a hub through it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub import errors as hf

from llmlb.bus.errors import Forbidden, InvalidRequest, LlmlbError, ModelUnknown, PullFailed, Unauthenticated
from llmlb.bus.hub_names import Wanted, parse_name
from llmlb.bus.hub_plan import plan
from llmlb.node.pull.hub import Hub, mapped
from llmlb.node.pull.trouble import Backoff, Passing
from tests.support.hub import LocalHub

GGUF = "tiny-Q4_K_M.gguf"
WANTED = Wanted("own", "tiny")


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as made:
        made.add("own/tiny", {GGUF: b"GGUF" * 1000, "sub/other-Q8_0.gguf": b"x" * 50, "config.json": b"{}"})
        made.add("own/gated", {GGUF: b"GGUF" * 10}, gated=True)
        made.add("own/private", {GGUF: b"GGUF" * 10}, private=True)
        yield made


@pytest.fixture
def access(hub: LocalHub) -> Hub:
    return Hub(hub.url, timeout_s=2)


def api(hub: LocalHub, token: str | None = None) -> HfApi:
    return HfApi(endpoint=hub.url, token=token or False)


def test_the_real_client_reads_info_and_tree(hub: LocalHub) -> None:
    info = api(hub).model_info("own/tiny", files_metadata=True)
    files = {each.rfilename: each for each in info.siblings or []}
    assert info.sha == hub.repos["own/tiny"].head
    assert files[GGUF].size == 4000
    assert files[GGUF].lfs is not None
    assert files["config.json"].lfs is None
    hub.page_size = 2
    tree = {each.path: each for each in api(hub).list_repo_tree("own/tiny", recursive=True)}
    assert set(tree) == {GGUF, "sub", "sub/other-Q8_0.gguf", "config.json"}
    assert tree[GGUF].lfs.sha256 == files[GGUF].lfs.sha256  # type: ignore[union-attr]
    assert {each.path for each in api(hub).list_repo_tree("own/tiny")} == {GGUF, "sub", "config.json"}


def test_the_real_client_follows_resolve(hub: LocalHub) -> None:
    large = get_hf_file_metadata(hf_hub_url("own/tiny", GGUF, endpoint=hub.url), endpoint=hub.url)
    assert large.location.startswith(hub.cdn_url)
    assert large.size == 4000
    assert large.commit_hash == hub.repos["own/tiny"].head
    assert large.xet_file_data is not None
    small = get_hf_file_metadata(hf_hub_url("own/tiny", "config.json", endpoint=hub.url), endpoint=hub.url)
    assert small.location.startswith(f"{hub.url}/api/resolve-cache/")
    assert small.size == 2


@pytest.mark.parametrize(
    ("repo", "file", "revision", "token", "error"),
    [
        ("own/gated", GGUF, "main", None, hf.GatedRepoError),
        ("own/gated", GGUF, "main", "hf_noaccess", hf.GatedRepoError),
        ("own/private", GGUF, "main", None, hf.RepositoryNotFoundError),
        ("own/nothing", GGUF, "main", "hf_good", hf.RepositoryNotFoundError),
        ("own/tiny", "gone.gguf", "main", None, hf.RemoteEntryNotFoundError),
        ("own/tiny", GGUF, "v9", None, hf.RevisionNotFoundError),
        ("own/tiny", GGUF, "main", "hf_bad", hf.HfHubHTTPError),
    ],
)
def test_the_real_client_raises_its_own_errors(
    hub: LocalHub, repo: str, file: str, revision: str, token: str | None, error: type[Exception]
) -> None:
    url = hf_hub_url(repo, file, revision=revision, endpoint=hub.url)
    with pytest.raises(error):
        get_hf_file_metadata(url, token=token or False, endpoint=hub.url)


def test_a_cdn_takes_ranges_and_neither_tokens_nor_old_addresses(hub: LocalHub) -> None:
    url = get_hf_file_metadata(hf_hub_url("own/tiny", GGUF, endpoint=hub.url), endpoint=hub.url).location
    part = httpx2.get(url, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"GGUF", "bytes 4-7/4000")
    assert httpx2.get(url, headers={"Range": "bytes=4000-"}).status_code == 416
    assert httpx2.get(url, headers={"Authorization": "Bearer hf_good"}).status_code == 400
    hub.expire_links()
    assert httpx2.get(url).status_code == 403


async def test_a_listing_is_a_plan(hub: LocalHub, access: Hub) -> None:
    wanted = parse_name(f"{hub.url}/own/tiny/blob/main/{GGUF}", hub.url)
    listing = await access.listing(wanted)
    made = plan(wanted, listing.files, listing.commit)
    assert [(file.local, file.size) for file in made.files] == [(GGUF, 4000)]
    place = access.locate(wanted, listing.commit, GGUF)
    assert place.etag == made.files[0].oid
    assert place.headers == {}


async def test_a_token_goes_to_the_hub_and_nowhere_else(hub: LocalHub) -> None:
    access = Hub(hub.url, "hf_good")
    wanted = Wanted("own", "gated")
    listing = await access.listing(wanted)
    assert access.locate(wanted, listing.commit, GGUF).headers == {}
    assert access.locate(WANTED, "main", "config.json").headers == {"Authorization": "Bearer hf_good"}
    assert {seen.authorization for seen in hub.seen} == {"Bearer hf_good"}
    assert "hf_good" not in repr(access.locate(WANTED, "main", "config.json"))


@pytest.mark.parametrize(
    ("repo", "token", "error", "words"),
    [
        ("own/gated", None, Unauthenticated, ("gated", "HF_TOKEN", "/own/gated")),
        ("own/gated", "hf_noaccess", Forbidden, ("gated", "HF_TOKEN", "/own/gated")),
        ("own/gated", "hf_bad", Unauthenticated, ("refuses", "HF_TOKEN")),
        ("own/private", None, ModelUnknown, ("no model own/private", "HF_TOKEN")),
        ("own/nothing", "hf_good", ModelUnknown, ("no model own/nothing",)),
    ],
)
async def test_lasting_causes_are_told_before_the_first_byte(
    hub: LocalHub, repo: str, token: str | None, error: type[LlmlbError], words: tuple[str, ...]
) -> None:
    access = Hub(hub.url, token)
    with pytest.raises(error) as raised:
        await access.listing(parse_name(repo))
    assert all(word in raised.value.message for word in words), raised.value.message
    assert "\n" not in raised.value.message


async def test_a_revision_or_file_that_is_not_there_is_named(access: Hub) -> None:
    with pytest.raises(ModelUnknown, match="no revision v9"):
        await access.listing(Wanted("own", "tiny", revision="v9"))
    with pytest.raises(PullFailed, match="own/tiny"):
        access.locate(WANTED, "main", "gone.gguf")


async def test_a_rate_limit_is_waited_for_and_told(hub: LocalHub, access: Hub) -> None:
    hub.misbehave(where="api", status=429, retry_after="1")
    hub.misbehave(where="api", status=503)
    notes: list[str] = []
    started = time.monotonic()
    listing = await access.listing(WANTED, notes.append, Backoff(0.01, 0.1))
    assert len(listing.files) == 3
    assert time.monotonic() - started >= 1
    assert "429" in notes[0]
    assert "503" in notes[1]


def test_a_hub_that_is_not_there_is_passing_trouble() -> None:
    access = Hub("http://127.0.0.1:9", timeout_s=1)
    with pytest.raises(Passing, match=r"127\.0\.0\.1:9 can't be reached"):
        access.list_now(WANTED)


def instance(cls: type[Exception], status: int) -> Exception:
    """An exception of a library, however it wants to be made."""
    request = httpx2.Request("GET", "http://hub/api/models/own/tiny")
    if issubclass(cls, hf.HfHubHTTPError):
        return cls("boom", response=httpx2.Response(status, request=request))
    parameters = inspect.signature(cls).parameters
    known: dict[str, Any] = {"request": request, "response": SimpleNamespace(status_code=status), "message": "boom"}
    return cls(*(["boom"] if "args" in parameters else []), **{k: known[k] for k in known if k in parameters})


def subclasses(cls: type[Exception]) -> set[type[Exception]]:
    return {cls, *(leaf for child in cls.__subclasses__() for leaf in subclasses(child))}


@pytest.mark.parametrize("has_token", [True, False])
def test_every_error_of_the_library_is_mapped(has_token: bool) -> None:
    classes = subclasses(hf.HfHubHTTPError) | subclasses(httpx2.TransportError)
    assert len(classes) > 15
    for cls in classes:
        for status in (400, 401, 403, 404, 408, 418, 429, 500, 502, 504):
            error = mapped(instance(cls, status), WANTED, "http://hub", has_token=has_token)
            assert isinstance(error, LlmlbError | Passing), cls
            if cls is hf.HfHubHTTPError:
                assert isinstance(error, Passing) == (status in (408, 429, 500, 502, 504))
            elif issubclass(cls, httpx2.TransportError):
                assert isinstance(error, Passing) == (cls is not httpx2.UnsupportedProtocol)
    assert isinstance(mapped(hf.HFValidationError("x"), WANTED, "http://hub", has_token=has_token), InvalidRequest)
