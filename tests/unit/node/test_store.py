from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from llmlb.bus.errors import ConfigError, InvalidRequest, ModelLoadFailed, ModelUnknown
from llmlb.bus.messages.models import ModelInfo
from llmlb.node.engine.channel import HEADER_BYTES, FrameReader, Kind, pack
from llmlb.node.hardware import Hardware, process_memory_bytes
from llmlb.node.identity import Identity
from llmlb.node.store.bundled import NAME, BundledSource
from llmlb.node.store.catalog import Catalog, StoredModel


class Shelf:
    """A source with the models that a test puts on it."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def scan(self) -> Iterable[StoredModel]:
        for name in self.names:
            info = ModelInfo(name=name, format="GGUF", size_bytes=1, architecture="llama", source="Local", created_at=0)
            yield StoredModel(info, Path("/x"), None, None, None, {})


def test_the_bundled_model_is_found_by_name_and_alias() -> None:
    catalog = Catalog([BundledSource()])
    model = catalog.resolve("smollm2")
    assert model == catalog.resolve(NAME)
    assert model.info.source == "Bundled"
    assert model.info.readonly
    assert model.path.stat().st_size == model.info.size_bytes
    details = catalog.details("smollm2")
    assert details.license == "apache-2.0"
    assert details.template_source == "model"


def test_an_unknown_name_tells_the_nearest_ones() -> None:
    catalog = Catalog([Shelf("owner/qwen3-4b", "owner/llama3")])
    with pytest.raises(ModelUnknown, match="did you mean owner/qwen3-4b"):
        catalog.resolve("owner/qwen3-4")
    with pytest.raises(ModelUnknown, match=r"was not found$"):
        catalog.resolve("zzzzzzzzzz")


@pytest.mark.parametrize("name", ["", "a b", "../etc/passwd", "a\nb", "é", "x" * 257, "a;b", "$(id)"])
def test_what_is_not_a_name_is_refused_as_such(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not a model name"):
        Catalog([Shelf("a/b")]).resolve(name)


def test_the_inventory_number_rises_with_each_change_only() -> None:
    shelf = Shelf("a/b")
    catalog = Catalog([shelf])
    first = catalog.inventory
    catalog.rescan()
    assert catalog.inventory == first
    shelf.names.append("c/d")
    catalog.rescan()
    assert catalog.inventory == first + 1
    assert [model.name for model in catalog.models()] == ["a/b", "c/d"]


def test_a_use_is_remembered() -> None:
    catalog = Catalog([Shelf("a/b")])
    assert catalog.resolve("a/b").info.last_used_at is None
    catalog.touch("a/b")
    assert catalog.resolve("a/b").info.last_used_at is not None


def test_a_home_keeps_its_node_id(tmp_path: Path) -> None:
    first = Identity(tmp_path / "home")
    node_id = first.node_id
    with pytest.raises(ConfigError, match="already runs"):
        Identity(tmp_path / "home")
    first.close()
    second = Identity(tmp_path / "home")
    assert second.node_id == node_id
    second.close()


def test_a_damaged_node_id_is_not_replaced_silently(tmp_path: Path) -> None:
    (tmp_path / "node_id").write_text("garbage")
    with pytest.raises(ConfigError, match="does not hold a node id"):
        Identity(tmp_path)


def test_frames_come_out_whole_whatever_the_pieces() -> None:
    frames = [(Kind.CHUNK, 7, b"hello"), (Kind.LAST, 2**63, b""), (Kind.CONTROL, 0, b"{}" * 1000)]
    data = b"".join(pack(*frame) for frame in frames)
    for size in (1, 3, HEADER_BYTES, 50, len(data)):
        reader = FrameReader()
        got = [frame for at in range(0, len(data), size) for frame in reader.feed(data[at : at + size])]
        assert got == frames


def test_a_frame_that_can_not_be_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes"):
        list(FrameReader().feed(b"\xff" * HEADER_BYTES))


def test_readings_are_bytes_and_a_machine_without_a_gpu_has_none() -> None:
    hardware = Hardware()
    reading = hardware.read()
    hardware.close()
    assert reading.memory_total_bytes is None or reading.memory_total_bytes > 100_000_000
    assert reading.gpus == () or all(gpu.memory_total_bytes > 0 for gpu in reading.gpus)
    assert process_memory_bytes(2**22 + 5) is None


def test_a_broken_bundled_file_is_left_out_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    monkeypatch.setattr("llmlb.node.store.bundled.bundled_path", lambda: broken)
    assert list(BundledSource().scan()) == []
    assert "bundled_model_unusable" in caplog.text
    monkeypatch.setattr("llmlb.node.store.bundled.bundled_path", lambda: None)
    assert list(BundledSource().scan()) == []


def test_model_load_failed_is_what_a_corrupt_file_raises_in_the_engine(tmp_path: Path) -> None:
    from llmlb.node.engine.interface import LoadOptions
    from llmlb.node.engine.llama_cpp import LlamaCppEngine

    corrupt = tmp_path / "corrupt.gguf"
    corrupt.write_bytes(b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 100)
    options = LoadOptions("m", str(corrupt), None, 1, 128, 1)
    with pytest.raises(ModelLoadFailed, match="could not load m"):
        LlamaCppEngine(options)
