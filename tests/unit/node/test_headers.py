from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmlb.bus.errors import ModelLoadFailed
from llmlb.node.store import headers
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.gguf import GgufInfo, read_gguf
from llmlb.node.store.installed import Store
from llmlb.node.store.local import LocalSource
from tests.unit.node.store_files import gguf, pull

FILES = {"m-Q4_K_M.gguf": gguf(template="{{ messages }}")}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose headers were read; begins with a cache that knows none."""
    files: list[Path] = []

    def noted(path: Path) -> GgufInfo:
        files.append(path)
        return read_gguf(path)

    monkeypatch.setattr(headers, "gguf", headers.HeaderCache(noted))
    return files


def forget() -> None:
    """As a process that starts."""
    headers.gguf.kept.clear()
    headers.gguf.changed = False


def test_a_rescan_reads_no_header_twice(tmp_path: Path, read: list[Path]) -> None:
    for number in range(5):
        pull(Store(tmp_path), f"o/m{number}", FILES)
    catalog = Catalog([LocalSource(tmp_path)])
    read.clear()
    catalog.rescan()
    assert read == []
    changed = tmp_path / "o/m0/m-Q4_K_M.gguf"
    os.utime(changed, ns=(1, 1))
    catalog.rescan()
    assert read == [changed]


def test_a_start_reads_no_header_that_was_read_before(tmp_path: Path, read: list[Path]) -> None:
    pull(Store(tmp_path), "o/m", FILES)
    before = list(LocalSource(tmp_path).scan())
    forget()
    read.clear()
    assert list(LocalSource(tmp_path).scan()) == before
    assert read == []
    assert list(LocalSource(tmp_path).folders()) == [tmp_path / "o/m"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "files": {"x": 7}}',
        b'{"format": 2}',
        b'{"format": 1, "files": []}',
    ],
)
def test_a_damaged_file_costs_only_time(tmp_path: Path, read: list[Path], damage: bytes) -> None:
    pull(Store(tmp_path), "o/m", FILES)
    before = list(LocalSource(tmp_path).scan())
    forget()
    (tmp_path / headers.FILE).write_bytes(damage)
    assert list(LocalSource(tmp_path).scan()) == before
    forget()
    read.clear()
    assert list(LocalSource(tmp_path).scan()) == before
    assert read == []


def test_files_that_are_gone_are_forgotten(tmp_path: Path, read: list[Path]) -> None:
    store = Store(tmp_path)
    pull(store, "o/m", FILES)
    source = LocalSource(tmp_path)
    store.remove(next(iter(source.scan())))
    pull(store, "o/other", FILES)
    list(source.scan())
    assert "o/m/" not in (tmp_path / headers.FILE).read_text()
    assert "o/other/" in (tmp_path / headers.FILE).read_text()


def test_a_file_that_can_not_be_written_hurts_nobody(
    tmp_path: Path, read: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    pull(Store(tmp_path), "o/m", FILES)
    (tmp_path / headers.FILE).mkdir()
    assert len(list(LocalSource(tmp_path).scan())) == 1
    assert "headers_not_kept" in caplog.text


def test_what_can_not_be_read_is_tried_again(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    for _ in range(2):
        with pytest.raises(ModelLoadFailed):
            headers.gguf.get(path)
    path.write_bytes(gguf())
    assert headers.gguf.get(path).architecture == "llama"


def test_there_is_an_end_to_what_is_kept(tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_KEPT", 3)
    for number in range(5):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(gguf())
        headers.gguf.get(path)
    assert len(headers.gguf.kept) <= 3
