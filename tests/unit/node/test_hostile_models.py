"""Models whose files hold what nobody foresaw: each costs itself, never the node."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from llmlb.bus.errors import ModelLoadFailed, PullFailed
from llmlb.node.store import local, ollama
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.gguf import read_gguf
from llmlb.node.store.installed import Store
from llmlb.node.store.local import LocalSource
from llmlb.node.store.ollama import OllamaSource
from tests.support.ollama import OllamaStore
from tests.unit.node.installed_files import ONE, REPO, TENSORS
from tests.unit.node.store_files import gguf, planned, pull, safetensors, stage

FLOAT_ARRAY = struct.pack("<IIQf", 9, 6, 1, float("inf"))


def endless_heads() -> bytes:
    """Heads by layer, as floats, and the first one infinite."""
    key = b"llama.attention.head_count"
    whole = gguf()
    keys = struct.unpack_from("<Q", whole, 16)[0]
    start = whole[:16] + struct.pack("<Q", keys + 1)
    return start + struct.pack("<Q", len(key)) + key + FLOAT_ARRAY + whole[24:]


def header(value: object) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<Q", len(data)) + data


HOSTILE = {
    "a template whose name is a list": {
        "model.safetensors": safetensors(a=("BF16", [1])),
        "config.json": b"{}",
        "tokenizer_config.json": b'{"chat_template": [{"name": [], "template": "x"}]}',
    },
    "a type that is a list": {
        "model.safetensors": header({"a": {"dtype": [], "shape": [1]}}),
        "config.json": b"{}",
    },
    "infinitely many heads": {"x.gguf": endless_heads()},
    "a manifest with an endless size": {
        "x.gguf": gguf(),
        "manifest-Q4.json": b'{"format":1,"model_format":"GGUF","label":"Q4","repo":"o/m","files":[{"name":"x.gguf",'
        b'"size":1e308}],"created_at":"inf"}',
    },
    "a removal of nothing that is a list": {"x.gguf": gguf(), ".removing-x.json": b'{"files": 5}'},
}


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_node_starts_with_any_model_on_its_disk_and_can_remove_it(tmp_path: Path, what: str) -> None:
    put(tmp_path / "evil/repo", HOSTILE[what])
    pull(Store(tmp_path), REPO, ONE)
    store = Store(tmp_path)
    store.recover()
    source = LocalSource(tmp_path)
    catalog = Catalog([source])
    assert REPO in [model.name for model in catalog.models()]
    if (broken := store.broken("evil/repo")) is not None:
        assert any(name.startswith("evil/repo") for name in source.problems)
        store.remove_broken(broken)
    elif "evil/repo" in catalog.names():
        store.remove(catalog.resolve("evil/repo"))
    assert not any(path.name.endswith((".gguf", ".safetensors")) for path in tmp_path.glob("evil/repo/*"))


class Odd(Exception):
    """What no code expects."""


def test_even_what_nobody_foresaw_costs_one_model_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "o/safe", TENSORS)
    pull(Store(tmp_path), REPO, ONE)

    def odd(*_: object) -> None:
        raise Odd("unforeseen")

    monkeypatch.setattr(local, "describe_safetensors", odd)
    source = LocalSource(tmp_path)
    assert [model.name for model in Catalog([source]).models()] == [REPO]
    assert source.problems == {"o/safe": "it can't be read: Odd('unforeseen')"}
    assert Store(tmp_path).broken("o/safe") is not None


def test_the_ollama_store_of_somebody_else_costs_one_model_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OllamaStore(tmp_path)
    store.add("good", store.blob("model", gguf()))
    store.add("odd", store.blob("model", gguf(salt="odd")))
    real = ollama.headers.gguf.get

    def odd(path: Path) -> object:
        info = real(path)
        if info.metadata.get("general.salt") == "odd":
            raise Odd("unforeseen")
        return info

    monkeypatch.setattr(ollama.headers.gguf, "get", odd)
    circle = tmp_path / "manifests/registry.ollama.ai/library/circle"
    circle.symlink_to(circle)
    source = OllamaSource(tmp_path)
    assert [model.name for model in Catalog([source]).models()] == ["ollama:good"]
    assert source.problems == {"ollama:odd": "it can't be read: Odd('unforeseen')"}


def test_a_header_with_numbers_that_are_none_is_no_readable_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(endless_heads())
    with pytest.raises(ModelLoadFailed, match=r"x\.gguf is not a readable GGUF file: a number by layer"):
        read_gguf(tmp_path / "x.gguf")


def test_a_context_that_can_be_none_is_none(tmp_path: Path) -> None:
    length = b"llama.context_length" + struct.pack("<I", 4)
    data = gguf().replace(length + struct.pack("<I", 2048), b"llama.context_length" + struct.pack("<Ii", 5, -5))
    (tmp_path / "x.gguf").write_bytes(data)
    assert read_gguf(tmp_path / "x.gguf").context_length is None


@pytest.mark.parametrize("hostile", [None, "chat_template.json"])
def test_what_could_not_be_listed_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: str | None
) -> None:
    store = Store(tmp_path)
    files = dict(TENSORS)
    if hostile is not None:
        files[hostile] = b"[]"
    else:
        monkeypatch.setattr("llmlb.node.store.describe.default_system", lambda _: [].nothing)  # type: ignore[attr-defined]
    todo = planned("o/m", files)
    digests = stage(store, todo, files)
    with pytest.raises(PullFailed, match="o/m can't be used"):
        store.install(todo, digests, origin="user", endpoint="x", taken_aliases=[])
    assert not (tmp_path / "o").exists(), "nothing has moved"
    assert store.leftovers()[0].repo == "o/m"


def test_a_later_shard_that_is_no_model_is_not_installed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    files = {"m-Q4_K_M-00001-of-00002.gguf": gguf(), "m-Q4_K_M-00002-of-00002.gguf": endless_heads()}
    todo = planned("o/m", files)
    digests = stage(store, todo, files)
    with pytest.raises(PullFailed, match="a number by layer"):
        store.install(todo, digests, origin="user", endpoint="x", taken_aliases=[])


@pytest.mark.parametrize("name", ["x.gguf", "config.json", "manifest-Q4.json", "model.safetensors"])
def test_a_pipe_among_the_files_holds_nobody_up(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "o/m"
    put(folder, {key: value for key, value in {**TENSORS, "y.gguf": gguf()}.items() if key != name})
    os.mkfifo(folder / name)
    assert "o/m" in {model.name.partition(":")[0] for model in Catalog([LocalSource(tmp_path)]).models()}


def test_a_name_that_is_not_utf_8_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pull(Store(tmp_path), REPO, ONE)
    (tmp_path / "o/m").mkdir(parents=True)
    (Path(os.fsdecode(os.fsencode(tmp_path / "o/m") + b"/\xff.gguf"))).write_bytes(gguf(salt="odd"))
    catalog = Catalog([LocalSource(tmp_path)])
    assert [model.name for model in catalog.models()] == [REPO, "o/m"]
    assert catalog.details("o/m").model_dump_json()
    assert (tmp_path / ".headers.json").exists()
    assert not caplog.records
