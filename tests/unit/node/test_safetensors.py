from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlb.bus.errors import ModelLoadFailed
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.local import LocalSource
from llmlb.node.store.safetensors import (
    SafetensorsInfo,
    architecture_of,
    context_length_of,
    parameters_of,
    quantization_of,
    read_safetensors,
)
from tests.unit.node.store_files import safetensors

VALID = safetensors(a=("BF16", [3, 4]), b=("F32", [5]), c=("BF16", []))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_weights_are_counted_from_the_header(tmp_path: Path) -> None:
    assert read_safetensors(write(tmp_path / "m.safetensors", VALID)) == SafetensorsInfo(18, 0)


def test_packed_weights_have_no_number() -> None:
    parts = [SafetensorsInfo(100, 0), SafetensorsInfo(50, 40)]
    assert parameters_of(parts, {}) == 150
    assert parameters_of(parts, {"quantization_config": {"quant_method": "awq"}}) is None
    assert parameters_of(parts[:1], {"quantization_config": {"quant_method": "fp8"}}) == 100
    assert parameters_of([], {}) is None
    assert parameters_of([SafetensorsInfo(10**40, 0)], {}) is None, "no number that a model has"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "ends early"),
        (b"1234567", "ends early"),
        (struct.pack("<Q", 2**63) + b"{}", "header of"),
        (struct.pack("<Q", 100) + b"{}", "ends early"),
        (struct.pack("<Q", 2) + b"[]", "not an object"),
        (struct.pack("<Q", 2) + b"{x", "not JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not JSON"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "no shape"),
        (safetensors(a=("F32", [-1])), "no shape"),
        (safetensors(a=("F32", [1] * 17)), "no shape"),
    ],
)
def test_a_damaged_or_hostile_file_is_a_clear_error(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(ModelLoadFailed, match=what) as caught:
        read_safetensors(write(tmp_path / "bad.safetensors", data))
    assert "bad.safetensors" in caught.value.message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_to_a_file_is_read_or_refused(tmp_path: Path, data: Any) -> None:
    changed = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 5))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_safetensors(write(tmp_path / "m.safetensors", bytes(changed)))
    except ModelLoadFailed as error:
        assert "m.safetensors" in error.message  # noqa: PT017  # either outcome is right


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 30 * 2**30))
        file.truncate(40 * 2**30)
    tracemalloc.start()
    with pytest.raises(ModelLoadFailed, match="header of"):
        read_safetensors(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("config", "tokenizer", "length"),
    [
        ({"max_position_embeddings": 4096}, {}, 4096),
        ({"text_config": {"max_position_embeddings": 8192}}, {}, 8192),
        ({"n_positions": 1024}, {}, 1024),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, {}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            {},
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096},
            },
            {},
            131072,
        ),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 2}}, {}, 4096),
        (
            {
                "model_type": "gemma3",
                "text_config": {
                    "max_position_embeddings": 131072,
                    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                },
            },
            {},
            131072,
        ),
        ({}, {"model_max_length": 2048}, 2048),
        ({}, {"model_max_length": 1e30}, None),
        ({"max_position_embeddings": "4096"}, {}, None),
        ({"max_position_embeddings": True}, {}, None),
        ({"max_position_embeddings": -1, "rope_scaling": 7, "text_config": []}, {}, None),
        ({"max_position_embeddings": 10, "rope_scaling": {"type": "linear", "factor": 1e300}}, {}, 10),
    ],
)
def test_the_context_length(config: dict[str, Any], tokenizer: dict[str, Any], length: int | None) -> None:
    assert context_length_of(config, tokenizer) == length


def test_architecture_and_quantization() -> None:
    assert architecture_of({"model_type": "qwen2", "architectures": ["X"]}) == "qwen2"
    assert architecture_of({"architectures": ["LlamaForCausalLM"]}) == "LlamaForCausalLM"
    assert architecture_of({"architectures": "x"}) == architecture_of({}) == "unknown"
    assert quantization_of({"torch_dtype": "bfloat16"}) == "BF16"
    assert quantization_of({"text_config": {"dtype": "float16"}}) == "F16"
    assert quantization_of({"quantization_config": {"quant_method": "awq", "bits": 4}}) == "AWQ-4bit"
    assert quantization_of({"quantization_config": {"quant_method": "fp8"}}) == "FP8"
    assert quantization_of({}) is None


def place(root: Path, **files: bytes | str) -> Path:
    folder = root / "o" / "m"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def test_a_model_whose_weights_can_not_be_read_is_still_described(tmp_path: Path) -> None:
    place(tmp_path, config__json='{"model_type": "llama"}', model__safetensors=b"\0" * 20)
    (model,) = LocalSource(tmp_path).scan()
    assert (model.info.parameters, model.info.architecture) == (None, "llama")


@pytest.mark.parametrize("config", ["[]", "{", "", "[" * 100_000])
def test_a_bad_config_leaves_the_model_out(tmp_path: Path, config: str, caplog: pytest.LogCaptureFixture) -> None:
    place(tmp_path, config__json=config, model__safetensors=VALID)
    assert list(LocalSource(tmp_path).scan()) == []
    assert "model_unreadable model=o/m" in caplog.text


def test_the_template_is_found_where_transformers_puts_it(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config = json.dumps({"chat_template": several, "model_max_length": 77})
    folder = place(tmp_path, config__json="{}", model__safetensors=VALID, tokenizer_config__json=config)
    (model,) = LocalSource(tmp_path).scan()
    assert (model.template, model.info.context_length) == ("D", 77)
    (folder / "chat_template.json").write_text('{"chat_template": "J"}')
    assert Catalog([LocalSource(tmp_path)]).details("o/m").template == "J"
    (folder / "chat_template.jinja").write_text("F")
    assert Catalog([LocalSource(tmp_path)]).details("o/m").template == "F"


def test_a_missing_shard_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = place(tmp_path, config__json="{}")
    (folder / "model-00001-of-00002.safetensors").write_bytes(VALID)
    assert list(LocalSource(tmp_path).scan()) == []
    assert "1 of 2 files are missing, first model-00002-of-00002.safetensors" in caplog.text
