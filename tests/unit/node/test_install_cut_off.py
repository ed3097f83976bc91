"""What is cut off while it is installed, replaced or removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmlb.bus.errors import Forbidden
from llmlb.node.store import moving
from llmlb.node.store.installed import Store
from llmlb.node.store.manifest import read_manifest
from tests.unit.node.installed_files import ONE, SEEING, SHARDS, TENSORS, catalog, names
from tests.unit.node.store_files import gguf, planned, pull, stage


class Killed(BaseException):
    """Stands for kill -9 at this place."""


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch, module: object, names: tuple[str, ...]) -> Callable[[], int]:
    """The ``number``th call of these functions does not happen, nor anything after it. Returns how many there were."""
    count = 0
    for name in names:
        real = getattr(module, name)

        def call(*args: object, _real: Callable[..., object] = real, **more: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return _real(*args, **more)

        monkeypatch.setattr(module, name, call)
    return lambda: count


@pytest.mark.parametrize("files", [ONE, SHARDS, TENSORS, SEEING], ids=["one", "shards", "safetensors", "projector"])
def test_an_installation_that_was_cut_off_anywhere_is_finished_or_was_not_begun(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("move", "sync_folder", "write_whole", "write_manifest")
    for number in range(1, 30):
        root = tmp_path / str(number)
        store = Store(root)
        todo = planned("o/m", files)
        digests = stage(store, todo, files)
        with monkeypatch.context() as patch:
            calls = kill_at(number, patch, moving, steps)
            try:
                store.install(todo, digests, origin="user", endpoint="http://x", taken_aliases=())
            except Killed:
                pass
            else:
                assert calls() < number
                assert number > len(todo.files)
                return
        listed = names(root)
        assert listed in ([], ["o/m"])
        if listed:
            assert all((root / "o/m" / file.local).exists() for file in todo.files), "visible before it was whole"
        again = Store(root)
        name = again.is_installed(todo)
        if name is None:
            assert all((again.staging(todo) / file.local).exists() for file in todo.files), "nothing is lost"
            again.install(todo, digests, origin="user", endpoint="http://x", taken_aliases=())
        assert catalog(root).resolve("o/m").info.source == "HuggingFace"
        assert again.leftovers() == []
        assert not (root / ".pulling").exists()
    pytest.fail("it never got through")


def test_a_replacement_that_was_cut_off_is_never_seen_as_half_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {name: gguf(tensors=((5, 5),), salt="newer") for name in SHARDS}
    for number in range(1, 30):
        root = tmp_path / str(number)
        store = Store(root)
        pull(store, "o/big", SHARDS)
        todo = planned("o/big", newer, "d" * 40)
        digests = stage(store, todo, newer)
        with monkeypatch.context() as patch:
            kill_at(number, patch, moving, ("move", "sync_folder", "write_whole", "write_manifest"))
            try:
                store.install(todo, digests, origin="user", endpoint="http://x", taken_aliases=())
            except Killed:
                pass
            else:
                return
        listed = {model.parameters for model in catalog(root).models()}
        assert listed in (set(), {60}, {75})
        Store(root).recover()
        assert {model.parameters for model in catalog(root).models()} in ({60}, {75})
    pytest.fail("it never got through")


def test_a_removal_that_was_cut_off_anywhere_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 30):
        root = tmp_path / str(number)
        store = Store(root)
        pull(store, "o/big", SHARDS)
        model = catalog(root).resolve("o/big")
        begun = False
        with monkeypatch.context() as patch:
            kill_at(number, patch, Path, ("unlink",))
            try:
                store.remove(model)
            except Killed:
                begun = True
        assert names(root) == [], "invisible from the first moment"
        Store(root).recover()
        assert not (root / "o").exists()
        if not begun:
            return
    pytest.fail("it never got through")


def test_a_model_that_is_pulled_again_after_a_removal_that_failed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    pull(store, "o/big", SHARDS)
    with monkeypatch.context() as patch:
        kill_at(2, patch, Path, ("unlink",))
        with pytest.raises(Killed):
            store.remove(catalog(tmp_path).resolve("o/big"))
    pull(store, "o/big", SHARDS)
    Store(tmp_path).recover()
    assert names(tmp_path) == ["o/big"]


def test_a_journal_whose_files_are_lost_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    todo = planned("o/big", SHARDS)
    stage(store, todo, SHARDS)
    staged = store.staging(todo)
    pull(Store(tmp_path / "other"), "o/big", SHARDS)
    manifest = read_manifest(tmp_path / "other/o/big/manifest-Q4_K_M.json")
    moving.begin_install(staged, manifest, {name: name for name in SHARDS}, [])
    (staged / "big-Q4_K_M-00002-of-00003.gguf").unlink()
    (staged / ".install-odd.json").write_bytes(b'{"moves": 7}')
    assert store.is_installed(todo) is None
    assert "is lost" in caplog.text
    assert names(tmp_path) == []
    assert moving.installs(staged) == []


def test_installing_works_where_the_owner_is_on_another_disk(tmp_path: Path) -> None:
    """An owner's folder may be a link; where there is a second file system, onto that."""
    other = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    target = other / f"llmlb-test-{os.getpid()}-{tmp_path.name}"
    target.mkdir()
    try:
        (tmp_path / "models").mkdir()
        (tmp_path / "models/o").symlink_to(target)
        store = Store(tmp_path / "models")
        pull(store, "o/big", SHARDS)
        assert names(tmp_path / "models") == ["o/big"]
        assert len(list((target / "big").glob("*.gguf"))) == 3
        with pytest.raises(Forbidden, match="behind a link"):
            store.remove(catalog(tmp_path / "models").resolve("o/big"))
    finally:
        shutil.rmtree(target)
