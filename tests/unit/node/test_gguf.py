from __future__ import annotations

import struct
import time
import tracemalloc
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


def _sparse(path: Path, start: bytes, size: int) -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def _peak(path: Path, *, refused: bool = False) -> int:
    """Bytes allocated at most while a file is read, the least of three times: threads that other tests have left
    behind in this process are counted, too."""
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            read_gguf(path)
            assert not refused
        except ModelLoadFailed as error:
            assert path.name in error.message  # noqa: PT017  # either outcome may be right
        finally:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        if peaks[-1] < 16 * 2**20:
            break
    return min(peaks)


@pytest.mark.parametrize(
    "start",
    [
        header([("k", 9, struct.pack("<IQ", 8, 2**31))], []),
        header([("k", 8, struct.pack("<Q", 2**31))], []),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 65_000),
        b"GGUF" + struct.pack("<IQQ", 3, 200_000, 0),
    ],
)
def test_a_huge_file_of_nothing_takes_neither_time_nor_memory(tmp_path: Path, start: bytes) -> None:
    path = _sparse(tmp_path / "huge.gguf", start, 64 * 2**30)
    assert _peak(path, refused=True) < 16 * 2**20


def test_many_texts_together_are_bounded_too(tmp_path: Path) -> None:
    big = 4 * 2**20
    texts = [(f"k{number}", 8, struct.pack("<Q", big) + b"x" * big) for number in range(17)]
    with pytest.raises(ModelLoadFailed, match="bytes of texts"):
        read_gguf(write(tmp_path / "m.gguf", header(texts, [])))


def test_more_weights_than_any_model_has_are_not_told(tmp_path: Path) -> None:
    data = header([("general.architecture", 8, text("x"))], [("w", [2**63, 2**63, 2**63, 2**63])])
    assert read_gguf(write(tmp_path / "m.gguf", data)).parameters is None


KINDS = st.sampled_from([0, 1, 4, 5, 6, 7, 8, 9, 10, 12, 13, 2**32 - 1])
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([2**20, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]))


@st.composite
def hostile_headers(draw: Any) -> bytes:
    """Headers that are right in form and wrong in size: counts, lengths and types drawn apart from what follows."""
    tensors, keys = draw(SIZES), draw(SIZES)
    out = b"GGUF" + struct.pack("<IQQ", draw(st.sampled_from([2, 3])), tensors, keys)
    for _ in range(draw(st.integers(0, 6))):
        key = draw(st.sampled_from(["general.architecture", "llama.attention.head_count", "k", ""]))
        kind = draw(KINDS)
        out += text(key) + struct.pack("<I", kind)
        if kind == 8:
            out += draw(st.one_of(st.just(text("llama")), SIZES.map(lambda n: struct.pack("<Q", n))))
        elif kind == 9:
            out += struct.pack("<IQ", draw(KINDS), draw(SIZES)) + draw(st.binary(max_size=40))
        else:
            out += draw(st.binary(max_size=12))
    return out + draw(st.binary(max_size=100))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)
@given(data=hostile_headers(), size=st.sampled_from([0, 2**20, 2**40]))
def test_no_header_allocates_much_or_escapes(tmp_path: Path, data: bytes, size: int) -> None:
    path = _sparse(tmp_path / "m.gguf", data, max(size, len(data)))
    assert _peak(path) < 32 * 2**20
