"""Removing models, whole and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmlb.bus.errors import Forbidden
from llmlb.node.store.bundled import BundledSource
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Leftover, Store
from tests.unit.node.installed_files import ONE, REPO, SEEING, SHARDS, catalog
from tests.unit.node.store_files import gguf, planned, pull, tree


def test_removing_frees_the_bytes_and_the_folders(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/big", SHARDS)
    freed = store.remove(catalog(tmp_path).resolve("o/big"))
    assert freed >= sum(len(data) for data in SHARDS.values())
    assert tree(tmp_path) == {}
    assert not (tmp_path / "o").exists()


def test_the_projector_goes_with_the_last_model_that_uses_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m:Q4_K_M", SEEING)
    pull(store, "o/m:Q8_0", SEEING)
    found = catalog(tmp_path)
    assert found.resolve("o/m:Q4_K_M").projector == tmp_path / "o/m/mmproj-F16.gguf"
    store.remove(found.resolve("o/m:Q4_K_M"))
    assert sorted(tree(tmp_path)) == ["o/m/m-Q8_0.gguf", "o/m/manifest-Q8_0.json", "o/m/mmproj-F16.gguf"]
    store.remove(catalog(tmp_path).resolve("o/m"))
    assert tree(tmp_path) == {}


def test_what_is_not_the_models_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, REPO, ONE)
    (tmp_path / REPO / "notes.txt").write_text("mine")
    store.remove(catalog(tmp_path).resolve(REPO))
    assert tree(tmp_path) == {f"{REPO}/notes.txt": b"mine"}


def test_a_hand_placed_model_can_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "o/m"
    folder.mkdir(parents=True)
    for name, data in SHARDS.items():
        (folder / name).write_bytes(data)
    store = Store(tmp_path)
    assert store.origins("o/m") == frozenset()
    assert store.remove(catalog(tmp_path).resolve("o/m")) == sum(len(data) for data in SHARDS.values())
    assert not folder.exists()


def test_a_link_to_a_model_is_removed_and_the_model_stays(tmp_path: Path) -> None:
    real = tmp_path / "real.gguf"
    real.write_bytes(gguf())
    folder = tmp_path / "models/o/m"
    folder.mkdir(parents=True)
    (folder / "m.gguf").symlink_to(real)
    store = Store(tmp_path / "models")
    assert store.remove(catalog(tmp_path / "models").resolve("o/m")) == 0
    assert real.exists()
    assert not folder.exists()


def test_a_read_only_model_is_not_removed(tmp_path: Path) -> None:
    model = Catalog([BundledSource()]).resolve("smollm2")
    with pytest.raises(Forbidden, match="'smollm2:135m-instruct-q4_1' is read-only: it belongs to Bundled"):
        Store(tmp_path).remove(model)
    assert model.path.exists()


def test_a_leftover_knows_its_repo(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.staging(planned(REPO, ONE))
    (store.staging(planned("o/big", SHARDS)) / "x.part").write_bytes(b"x" * 5000)
    (left,) = store.leftovers()
    assert left == Leftover("o/big", left.bytes)
    assert left.bytes >= 5000


# Broken ones


def test_what_is_broken_is_removed_and_what_another_model_uses_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m:Q4_K_M", SEEING)
    pull(store, "o/m:Q8_0", SEEING)
    (tmp_path / "o/m/m-Q8_0.gguf").unlink()
    assert store.broken("o/m") is None, "that is the whole one's name"
    broken = store.broken("o/m:Q8_0")
    assert broken is not None
    store.remove_broken(broken)
    assert sorted(tree(tmp_path)) == ["o/m/m-Q4_K_M.gguf", "o/m/manifest-Q4_K_M.json", "o/m/mmproj-F16.gguf"]
    assert store.broken("o/m:Q8_0") is None


def test_a_hand_placed_model_that_is_broken_can_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "o/m"
    folder.mkdir(parents=True)
    for name, data in list(SHARDS.items())[:2]:
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("mine")
    store = Store(tmp_path)
    for name in ("o/m", "o/m:Q4_K_M"):
        assert store.broken(name) is not None
    broken = store.broken("o/m")
    assert broken is not None
    assert "1 of 3 files are missing" in broken.why
    assert store.remove_broken(broken) == sum(len(data) for data in list(SHARDS.values())[:2])
    assert list(tree(tmp_path)) == ["o/m/notes.txt"]


def test_a_damaged_manifest_without_a_model_can_be_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, REPO, ONE)
    (path,) = (tmp_path / REPO).glob("manifest-*.json")
    path.write_bytes(b"{")
    store.remove(catalog(tmp_path).resolve(REPO))
    broken = store.broken(REPO)
    assert broken is not None
    store.remove_broken(broken)
    assert tree(tmp_path) == {}


def test_of_two_broken_ones_the_repo_alone_names_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for quant in ("Q4_K_M", "Q8_0"):
        pull(store, f"o/m:{quant}", SEEING)
        (tmp_path / f"o/m/m-{quant}.gguf").unlink()
    assert store.broken("o/m") is None
    assert store.broken("o/m:Q4_K_M") is not None
    assert store.broken("../x") is None
    assert store.broken("ollama:x") is None


def test_what_is_broken_behind_a_link_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/m-Q4_K_M.gguf").write_bytes(b"no model")
    (tmp_path / "models/o").mkdir(parents=True)
    (tmp_path / "models/o/m").symlink_to(tmp_path / "elsewhere")
    store = Store(tmp_path / "models")
    broken = store.broken("o/m")
    assert broken is not None
    with pytest.raises(Forbidden, match="behind a link"):
        store.remove_broken(broken)
