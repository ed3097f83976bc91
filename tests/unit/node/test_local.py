from __future__ import annotations

from pathlib import Path

import pytest

from llmlb.bus.errors import ModelUnknown
from llmlb.node.store.bundled import BundledSource
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.describe import default_system
from llmlb.node.store.local import LocalSource
from tests.unit.node.store_files import gguf, safetensors

SMOL = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are Smol.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role']}}"
)


def place(root: Path, name: str, **files: bytes) -> Path:
    """Files of a hand-placed model; ``__`` stands for a dot."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file.replace("__", ".")).write_bytes(data)
    return folder


def names(root: Path) -> dict[str, tuple[str, ...]]:
    return {model.info.name: model.info.also for model in LocalSource(root).scan()}


def test_a_hand_placed_model_has_its_folders_name_and_no_alias(tmp_path: Path) -> None:
    place(tmp_path, "o/m", **{"m-q4_k_m.gguf": gguf()})
    (model,) = LocalSource(tmp_path).scan()
    assert (model.info.name, model.info.aliases, model.info.source) == ("o/m", (), "Local")
    assert model.info.also == ("o/m:Q4_K_M",)
    assert model.manifest is None


def test_the_files_name_tells_the_quantization_before_the_header(tmp_path: Path) -> None:
    place(tmp_path, "o/m", **{"m-UD-Q4_K_XL.gguf": gguf(file_type=15)})
    (model,) = LocalSource(tmp_path).scan()
    assert model.info.quantization == "UD-Q4_K_XL"
    assert model.info.also == ("o/m:UD-Q4_K_XL", "o/m:Q4_K_XL")


def test_two_files_of_one_quantization_are_told_apart_by_their_stems(tmp_path: Path) -> None:
    place(tmp_path, "o/m", **{"a-Q8_0.gguf": gguf(), "b-Q8_0.gguf": gguf()})
    (tmp_path / "o/m/odd name (1).gguf").write_bytes(gguf(file_type=1))
    found = names(tmp_path)
    assert {"o/m:a-Q8_0", "o/m:b-Q8_0", "o/m:F16"} <= found.keys()
    catalog = Catalog([LocalSource(tmp_path)])
    for name in found:
        assert catalog.resolve(name).info.name == name


def test_what_is_no_model_of_its_own_is_none(tmp_path: Path) -> None:
    folder = place(tmp_path, "o/m", m__gguf=gguf())
    for name in ("mmproj-F16.gguf", "m.imatrix.gguf", "notes.txt", "half.gguf.part"):
        (folder / name).write_bytes(gguf())
    (folder / "sub").mkdir()
    (folder / "sub/other.gguf").write_bytes(gguf())
    (model,) = LocalSource(tmp_path).scan()
    assert (model.path.name, model.projector) == ("m.gguf", folder / "mmproj-F16.gguf")


def test_safetensors_beside_gguf_is_a_model_of_its_own(tmp_path: Path) -> None:
    place(tmp_path, "o/m", m__gguf=gguf(), config__json=b"{}", model__safetensors=safetensors(a=("F32", [2])))
    assert names(tmp_path).keys() == {"o/m:Q4_K_M", "o/m:safetensors"}


@pytest.mark.parametrize("name", [".pulling/o", "o/.m", "ö/m", "o/m m", "o" * 200 + "/" + "x" * 100, "o/a..b", "o"])
def test_folders_that_can_not_be_a_name_are_left_alone(tmp_path: Path, name: str) -> None:
    place(tmp_path, name, m__gguf=gguf())
    assert names(tmp_path) == {}


def test_a_folder_that_can_not_be_read_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place(tmp_path, "o/good", m__gguf=gguf())
    folder = place(tmp_path, "o/bad")
    (folder / "m.gguf").mkdir()
    (folder / "dangling.gguf").symlink_to(tmp_path / "nowhere")
    place(tmp_path, "o/short", m__gguf=b"GGUF")
    assert names(tmp_path).keys() == {"o/good"}
    assert "o/short" in caplog.text


def test_a_missing_shard_is_told_to_who_asks(tmp_path: Path) -> None:
    folder = place(tmp_path, "o/m")
    (folder / "m-00001-of-00002.gguf").write_bytes(gguf())
    catalog = Catalog([LocalSource(tmp_path), BundledSource()])
    with pytest.raises(ModelUnknown, match=r"1 of 2 files are missing, first m-00002-of-00002\.gguf"):
        catalog.resolve("o/m")


@pytest.mark.parametrize(
    ("template", "system"),
    [
        (SMOL, "You are Smol."),
        (SMOL.replace("\\n", "\n"), "You are Smol."),
        ("{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>' }}", None),
        ("'<|im_start|>system\\nOne<|im_end|>' '<|im_start|>system\\nTwo<|im_end|>'", None),
        ("<|im_start|>system\\n{{ x }}<|im_end|>", None),
        ("", None),
        (None, None),
    ],
)
def test_the_system_prompt_of_a_template(template: str | None, system: str | None) -> None:
    assert default_system(template) == system


def test_the_demo_models_system_prompt() -> None:
    model = Catalog([BundledSource()]).resolve("smollm2")
    assert model.system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
