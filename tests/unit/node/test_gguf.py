from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlb.bus.errors import ModelLoadFailed
from llmlb.node.store.bundled import bundled_path
from llmlb.node.store.gguf import read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(metadata: list[tuple[str, int, bytes]], tensors: list[tuple[str, list[int]]]) -> bytes:
    """A GGUF version 3 header."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, kind, value in metadata:
        out += text(key) + struct.pack("<I", kind) + value
    for name, shape in tensors:
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", 0, 0)
    return out


VALID = header(
    [
        ("general.architecture", 8, text("llama")),
        ("general.file_type", 4, struct.pack("<I", 15)),
        ("llama.context_length", 4, struct.pack("<I", 2048)),
        ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
        ("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 2) + struct.pack("<ff", 1, 2)),
        ("tokenizer.chat_template", 8, text("{{ messages }}")),
    ],
    [("w", [3, 4]), ("b", [5])],
)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_header_is_read(tmp_path: Path) -> None:
    info = read_gguf(write(tmp_path / "m.gguf", VALID))
    assert (info.architecture, info.quantization, info.context_length) == ("llama", "Q4_K_M", 2048)
    assert info.parameters == 17
    assert info.chat_template == "{{ messages }}"
    assert info.metadata["tokenizer.ggml.tokens"] == 2, "long arrays are counted, not kept"


def test_the_demo_model() -> None:
    path = bundled_path()
    assert path is not None
    info = read_gguf(path)
    assert (info.architecture, info.quantization, info.parameters) == ("llama", "Q4_1", 134_515_008)
    assert info.context_length == 8192
    assert "im_start" in (info.chat_template or "")


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("m.Q4_K_M.gguf", "Q4_K_M"),
        ("m-q8_0.gguf", "Q8_0"),
        ("m-IQ3_XXS-00001-of-00003.gguf", "IQ3_XXS"),
        ("m.gguf", None),
    ],
)
def test_without_a_file_type_the_name_tells_the_quantization(
    tmp_path: Path, name: str, quantization: str | None
) -> None:
    data = header([("general.architecture", 8, text("llama"))], [])
    assert read_gguf(write(tmp_path / name, data)).quantization == quantization


def _count(position: int, value: int) -> bytes:
    return VALID[:position] + struct.pack("<Q", value) + VALID[position + 8 :]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "ends early"),
        (b"GGU", "ends early"),
        (b"ELF!" + VALID[4:], "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 99) + VALID[8:], "version 99"),
        (_count(8, 2**62), "tensors"),
        (_count(16, 2**62), "keys"),
        (_count(16, 60_000), "ends early|a text of|unknown type"),
        (VALID[:-20], "ends early"),
        (header([("k", 8, struct.pack("<Q", 2**60))], []), "text of"),
        (header([("k", 9, struct.pack("<IQ", 8, 2**60))], []), "texts"),
        (header([("k", 9, struct.pack("<IQ", 10, 2**60))], []), "ends early"),
        (header([("k", 9, struct.pack("<IQ", 9, 1))], []), "array of type 9"),
        (header([("k", 77, b"")], []), "unknown type 77"),
        (header([], []), "no architecture"),
        (header([("general.architecture", 8, text("x"))], [("w", [1] * 9)]), "dimensions"),
    ],
)
def test_a_damaged_or_hostile_header_is_a_clear_error(tmp_path: Path, data: bytes, what: str) -> None:
    began = time.monotonic()
    with pytest.raises(ModelLoadFailed, match=what) as caught:
        read_gguf(write(tmp_path / "bad.gguf", data))
    assert "bad.gguf" in caught.value.message
    assert time.monotonic() - began < 2


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"none\.gguf can't be read"):
        read_gguf(tmp_path / "none.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_any_change_to_a_header_is_read_or_refused(tmp_path: Path, data: Any) -> None:
    changed = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_gguf(write(tmp_path / "m.gguf", bytes(changed)))
    except ModelLoadFailed as error:
        assert "m.gguf" in error.message  # noqa: PT017  # either outcome is right
