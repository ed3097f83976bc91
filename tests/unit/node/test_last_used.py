from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from llmlb.node.store import catalog as catalog_module
from llmlb.node.store.bundled import NAME, BundledSource
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Store
from llmlb.node.store.local import LocalSource
from llmlb.node.store.manifest import Manifest, read_manifest, update_manifest
from llmlb.node.store.usage import FILE, LastUsed
from tests.unit.node.store_files import gguf, pull

FILES = {"m-Q4_K_M.gguf": gguf(), "m-Q8_0.gguf": gguf(file_type=7)}


def opened(root: Path) -> Catalog:
    return Catalog([LocalSource(root), BundledSource()], LastUsed(root))


def used(catalog: Catalog, name: str) -> float | None:
    return catalog.resolve(name).info.last_used_at


def test_when_a_model_was_used_survives_a_restart(tmp_path: Path) -> None:
    pull(Store(tmp_path), "o/m", FILES)
    first = opened(tmp_path)
    assert used(first, "o/m") is None
    began = time.time()
    first.touch("o/m")
    first.touch(NAME)
    first.close()
    second = opened(tmp_path)
    for name in ("o/m", NAME):
        at = used(second, name)
        assert at is not None
        assert began <= at <= time.time()
    manifest = read_manifest(tmp_path / "o/m/manifest-Q4_K_M.json")
    assert manifest.last_used_at == used(second, "o/m")
    assert list(orjson.loads((tmp_path / FILE).read_bytes())) == [NAME]


def test_using_a_model_is_no_change_of_the_list(tmp_path: Path) -> None:
    pull(Store(tmp_path), "o/m", FILES)
    catalog = opened(tmp_path)
    before = catalog.inventory
    catalog.touch("o/m")
    catalog.close()
    catalog.rescan()
    assert catalog.inventory == before


def test_it_is_written_by_itself_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "SAVE_AFTER_S", 0.01)
    written = threading.Event()

    class Book(LastUsed):
        def save(self, used: object) -> None:
            super().save(used)  # type: ignore[arg-type]
            written.set()

    catalog = Catalog([BundledSource()], Book(tmp_path))
    for _ in range(3):
        written.clear()
        catalog.touch(NAME)
        assert written.wait(10)
    assert used(opened(tmp_path), NAME) == used(catalog, NAME)
    catalog.close()


def test_of_many_requests_one_writes(tmp_path: Path) -> None:
    saved = 0

    class Book(LastUsed):
        def save(self, used: object) -> None:
            nonlocal saved
            saved += 1

    before = threading.active_count()
    catalog = Catalog([BundledSource()], Book(tmp_path))
    for _ in range(10_000):
        catalog.touch(NAME)
    assert threading.active_count() <= before + 1
    catalog.close()
    assert saved == 1
    catalog.touch(NAME)
    assert threading.active_count() <= before + 1, "nothing begins after the end"


def test_a_write_that_fails_is_said_once_and_hurts_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "models"
    pull(Store(root), "o/m", FILES)
    catalog = opened(root)
    (root / FILE).mkdir()  # a folder is where the file should go: works for root, too
    (root / "o/m/manifest-Q4_K_M.json").write_bytes(b"{")
    for _ in range(3):
        catalog.touch("o/m")
        catalog.touch(NAME)
        catalog.close()
    assert caplog.text.count("last_used_not_written") == 1
    assert used(catalog, "o/m") is not None
    assert not list(root.glob(".*.tmp"))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a": "x", "b": null, "c": NaN}', b'{"a": 1e999}', b"[" * 99_999])
def test_a_damaged_file_is_as_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    assert dict(LastUsed(tmp_path).load()) == {}


def test_a_model_that_gets_a_longer_name_was_used_when_it_was_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m:Q4_K_M", FILES)
    catalog = opened(tmp_path)
    catalog.touch("o/m")
    at = used(catalog, "o/m")
    pull(store, "o/m:Q8_0", FILES)
    catalog.rescan()
    assert used(catalog, "o/m:Q4_K_M") == at
    assert used(catalog, "o/m:Q8_0") is None
    catalog.close()
    assert used(opened(tmp_path), "o/m:Q4_K_M") == at


def test_a_removed_model_is_not_written_anymore(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m", FILES)
    catalog = opened(tmp_path)
    catalog.touch("o/m")
    store.remove(catalog.resolve("o/m"))
    catalog.close()
    assert not (tmp_path / "o").exists()


def test_threads_that_look_while_the_list_changes_always_see_a_whole_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m:Q4_K_M", FILES)
    catalog = opened(tmp_path)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.0005):
            assert catalog.resolve("m").info.name.startswith("o/m")
            catalog.touch("o/m")
            assert len(catalog.models()) in (2, 3)

    with ThreadPoolExecutor(3) as pool:
        looking = [pool.submit(look) for _ in range(3)]
        try:
            for _ in range(4):
                pull(store, "o/m:Q8_0", FILES)
                catalog.rescan()
                store.remove(catalog.resolve("o/m:Q8_0"))
                catalog.rescan()
        finally:
            stop.set()
        for each in looking:
            each.result(30)
    catalog.close()


def slow_update(path: Path) -> threading.Thread:
    """A thread that has read a manifest to note the last use, and takes its time to write it."""
    read = threading.Event()

    def change(manifest: Manifest) -> Manifest:
        read.set()
        time.sleep(0.2)  # not to wait for something: whoever does not wait for this thread is through by then
        return replace(manifest, last_used_at=5.0)

    def update() -> None:
        with contextlib.suppress(FileNotFoundError):
            update_manifest(path, change)

    thread = threading.Thread(target=update)
    thread.start()
    assert read.wait(10)
    return thread


def test_a_model_that_is_removed_while_its_use_is_noted_stays_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m", FILES)
    model = opened(tmp_path).resolve("o/m")
    assert model.manifest is not None
    thread = slow_update(model.manifest)
    store.remove(model)
    thread.join(10)
    assert not (tmp_path / "o").exists()


def test_a_revision_that_comes_while_the_use_of_the_last_one_is_noted_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pull(store, "o/m", FILES)
    path = opened(tmp_path).resolve("o/m").manifest
    assert path is not None
    thread = slow_update(path)
    newer = {name: gguf(salt="a longer one") for name in FILES}
    pull(store, "o/m", newer, revision="d" * 40)
    thread.join(10)
    manifest = read_manifest(path)
    assert manifest.revision == "d" * 40
    assert manifest.disagreement(path.parent) is None
