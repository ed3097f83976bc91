"""The pure parts of the model hub: what the hub answers, errors, memory and warnings, states, manifests."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import HubUnavailable, InvalidRequest, ModelDownloading, NoCapableNode, PullFailed
from llmlb.bus.hub_manifest import manifest_of, planned
from llmlb.bus.hub_names import parse_name, task_id_of, wanted_of
from llmlb.bus.hub_plan import RepoFile, plan
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.models import ManifestFile, ModelManifest, RegisteredModel
from llmlb.bus.messages.pulls import PullProgress
from llmlb.router.hub import fit, states
from llmlb.router.hub.answers import as_json, batch_of, repository_of
from llmlb.router.hub.client import HubClient
from llmlb.router.hub.fit import Room
from llmlb.router.hub.states import Seat

NODE = "ab" * 16
RECORD = RegisteredModel(name="own/model:Q4_0", registered_at=1.0)


def tree(root: type[Exception]) -> list[type[Exception]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


@pytest.mark.parametrize(
    "error", [*tree(httpx.HTTPError), httpx.InvalidURL, *tree(httpx.StreamError), OSError], ids=lambda cls: cls.__name__
)
def test_whatever_httpx_raises_is_the_hubs_unavailability(error: type[Exception]) -> None:
    made = error.__new__(error)
    made.args = ("it broke",)
    assert isinstance(HubClient("http://user:secret@127.0.0.1:1").mapped(made), HubUnavailable)


def test_credentials_in_the_address_of_the_hub_are_never_told() -> None:
    client = HubClient("http://user:secret@127.0.0.1:1")
    assert "secret" not in client.mapped(httpx.ConnectError("no")).message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("id", "sha", "siblings", "lastModified", "downloads", "likes", "gated", "gguf", "tags")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, json_values)), json_values)
def test_no_answer_of_a_hub_is_more_than_nothing(item: dict[str, Any], other: Any) -> None:
    found = repository_of({**item, "id": "own/model"})
    assert found is not None
    assert repository_of(as_json(found)) == found, "what is kept is read back as it was"
    assert repository_of(item) is None or "/" in str(item["id"])
    batch_of([other, item])
    batch_of(other)


@pytest.mark.parametrize("name", ["", "model", "../x", "own/model:Q4", "own//model", "https://hf.co/own/model", 5])
def test_a_repository_with_a_name_that_is_none_is_left_out(name: object) -> None:
    assert repository_of({"id": name}) is None


def test_warnings_name_what_may_go_wrong() -> None:
    large = Room("a", "big", 64 * 10**9, 200 * 10**9, ("llama.cpp",))
    small = Room("b", "small", 8 * 10**9, 20 * 10**9, ("llama.cpp", "vllm"))
    silent = Room("c", "silent")
    assert fit.warnings(10**9, 2 * 10**9, "llama.cpp", [large, small]) == ()
    assert "50.1 GB have to be downloaded" in fit.warnings(50_100_000_000, 5 * 10**10, "llama.cpp", [large])[0]
    assert "no node has room on its disk" in fit.warnings(30 * 10**9, 4 * 10**9, "llama.cpp", [small])[0]
    assert "no node has enough memory" in fit.warnings(10 * 10**9, 12 * 10**9, "llama.cpp", [small])[0]
    assert fit.warnings(10 * 10**9, 12 * 10**9, "llama.cpp", [small, silent]) == (), "one says nothing"
    assert "(vllm)" in fit.warnings(10**9, 10**9, "vllm", [large])[0]
    assert fit.warnings(10**9, 10**9, "vllm", [small]) == ()
    assert fit.warnings(10**9, 10**9, "llama.cpp", [silent]) == (), "an old node runs llama.cpp"
    assert "no approved node" in fit.warnings(1, 1, "llama.cpp", [])[0]


def task(status: str, *, done: int = 0, total: int = 100, **more: Any) -> PullProgress:
    return PullProgress(
        task_id="a" * 16,
        node_id=NODE,
        model="own/model:Q4_0",
        status=status,  # type: ignore[arg-type]
        phase="downloading",
        total_bytes=total,
        downloaded_bytes=done,
        started_at=time.time(),
        **more,
    )


def seats(*given: str | PullProgress | None) -> list[Seat]:
    made = []
    for number, one in enumerate(given):
        known = one if isinstance(one, PullProgress) else None
        made.append(Seat(f"{number:032x}", f"n{number}", True, one == "ready", known))
    return made


FAILED = task("failed", error=WireError(reason="pull_failed", message="it is gone"))


@pytest.mark.parametrize(
    ("given_seats", "lifecycle", "status"),
    [
        ((), "registered", "available"),
        ((None, None), "registered", "available"),
        ((task("cancelled"),), "registered", "available"),
        ((task("pending"), FAILED), "pending", "downloading"),
        (("ready", task("downloading")), "ready", "downloading"),
        (("ready", FAILED, None), "ready", "downloaded"),
        ((FAILED, None), "error", "available"),
    ],
)
def test_the_state_of_a_model_is_summed_up(given_seats: tuple[Any, ...], lifecycle: str, status: str) -> None:
    found = states.summed_up(RECORD, seats(*given_seats))
    assert (found.lifecycle, found.status) == (lifecycle, status)
    assert (found.ready, found.total) == (given_seats.count("ready"), len(given_seats))


def test_of_very_many_nodes_those_that_are_not_ready_are_shown() -> None:
    found = states.summed_up(RECORD, seats(*(["ready"] * 500), None, FAILED))
    assert len(found.shown) == states.MOST_SHOWN
    assert {node.lifecycle_status for node in found.shown} == {"ready", "registered", "error"}


def test_a_request_is_told_how_far_a_download_is_and_when_to_come_back() -> None:
    error = states.why_not_ready("m", RECORD, seats(task("downloading", done=41, eta_s=12.2), task("pending")))
    assert isinstance(error, ModelDownloading)
    assert "41% of 100 bytes" in error.message
    assert error.retry_after_s == 13
    assert isinstance(states.why_not_ready("m", RECORD, seats(None)), ModelDownloading)
    failed = states.why_not_ready("m", RECORD, seats(FAILED))
    assert isinstance(failed, NoCapableNode)
    assert "it is gone" in failed.message
    away = states.why_not_ready("m", RECORD, seats("ready"))
    assert "no node that has" in away.message


def test_nothing_that_is_not_whole_is_at_100_percent() -> None:
    assert states.percent_of(task("downloading", done=999_999, total=1_000_000)) == 99
    assert states.percent_of(task("downloading", done=5, total=0)) is None


def test_a_manifest_is_the_plan_it_was_made_from() -> None:
    wanted = parse_name("own/model:Q4_0")
    files = [RepoFile("a/model-Q4_0.gguf", 5, "ab" * 32), RepoFile("mmproj-F16.gguf", 2, None)]
    made = plan(wanted, files, "c" * 40)
    assert planned(manifest_of(made, "own/model"), wanted) == made


@pytest.mark.parametrize("local", ["../x.gguf", "a/b.gguf", ".hidden", "", "x\x00y"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(local: str) -> None:
    manifest = ModelManifest(
        repo="own/model",
        revision="c",
        format="GGUF",
        files=(ManifestFile(path="x.gguf", local=local, size_bytes=1),),
    )
    with pytest.raises(PullFailed):
        planned(manifest, parse_name("own/model"))
    one = ManifestFile(path="x.gguf", local="x.gguf", size_bytes=1)
    with pytest.raises(PullFailed, match="twice"):
        planned(manifest.model_copy(update={"files": (one, one)}), parse_name("own/model"))
    with pytest.raises(PullFailed, match="no file"):
        planned(manifest.model_copy(update={"files": ()}), parse_name("own/model"))


def test_a_registration_and_a_pull_of_the_same_have_one_task() -> None:
    assert task_id_of(wanted_of("own/model:Q4_0")) == task_id_of(parse_name("hf://own/model:Q4_0"))
    assert task_id_of(wanted_of("own/model:x", "x.gguf")) == task_id_of(
        parse_name("https://huggingface.co/own/model/blob/main/x.gguf")
    )
    with pytest.raises(InvalidRequest):
        wanted_of("no name")
