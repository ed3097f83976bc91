"""Read what a GGUF file says of itself, without loading it and without trusting it.

Bounded: a hostile header neither allocates more than a few MiB nor loops; long arrays are skipped and replaced by
their length. Source of the format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmlb.bus.errors import ModelLoadFailed
from llmlb.node.store.files import open_file

MAGIC = b"GGUF"
MAX_KEYS = 65_536
MAX_TENSORS = 200_000
"""The largest models have a few thousand, those with an expert a tensor some 50,000."""
MAX_STRING_BYTES = 4 * 1024 * 1024
MAX_METADATA_BYTES = 64 * 1024 * 1024
"""Of all texts that are kept."""
MAX_TEXTS = 2_000_000
"""In one array, which is read one by one. Vocabularies have at most 300,000, their merges twice as many."""
MAX_PARAMETERS = 10**15
MAX_KEY_BYTES = 65_535
MAX_DIMENSIONS = 4
MAX_LAYERS = 65_536
_BY_LAYER = (".attention.head_count_kv", ".attention.head_count", ".feed_forward_length")
"""Keys that hold one number, or one number for each layer."""

# Scalar value types: number → struct format. Source: enum gguf_type.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# Source: llama.h, enum llama_ftype.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
}
_LENGTH = struct.Struct("<Q")
_CHUNK_BYTES = 256 * 1024
_QUANT_IN_NAME = re.compile(
    r"[.-]((?:I?Q\d_(?:[A-Z0-9]+(?:_[A-Z]+)?)|F16|F32|BF16|MXFP4))(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE
)

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What the header says. Sizes in bytes; ``metadata`` has arrays replaced by the number of their elements."""

    architecture: str
    quantization: str | None
    parameters: int | None
    context_length: int | None
    chat_template: str | None
    license: str | None
    size_bytes: int
    metadata: dict[str, Scalar]


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.size = path.stat().st_size
        self._kept = 0

    def bad(self, what: str) -> ModelLoadFailed:
        return ModelLoadFailed(f"{self._path.name} is not a readable GGUF file: {what}", detail=str(self._path))

    def take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise self.bad("it ends early")
        return data

    def skip(self, count: int) -> None:
        if self._file.tell() + count > self.size:
            raise self.bad("it ends early")
        self._file.seek(count, 1)

    def scalar(self, format: str) -> Any:
        return struct.unpack("<" + format, self.take(struct.calcsize("<" + format)))[0]

    def string(self, limit: int = MAX_STRING_BYTES) -> str:
        length = self.scalar("Q")
        if length > limit:
            raise self.bad(f"a text of {length} bytes")
        self._kept += length
        if self._kept > MAX_METADATA_BYTES:
            raise self.bad(f"more than {MAX_METADATA_BYTES} bytes of texts")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, *, largest: bool = False) -> Scalar:
        """One value. An array is skipped and replaced by its length, or by its ``largest`` number."""
        if kind in _SCALARS:
            value: Scalar = self.scalar(_SCALARS[kind])
            return value
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._largest() if largest else self._skip_array()
        raise self.bad(f"a value of unknown type {kind}")

    def _largest(self) -> int:
        """The largest of a short array of whole numbers, such as KV heads by layer."""
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind not in _SCALARS or count > MAX_LAYERS:
            raise self.bad(f"an array of {count} values of type {kind} where numbers by layer are")
        numbers = [self.scalar(_SCALARS[kind]) for _ in range(count)]
        if not all(math.isfinite(number) for number in numbers):
            raise self.bad("a number by layer that is none")
        return max(map(int, numbers), default=0)

    def _skip_array(self) -> int:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize("<" + _SCALARS[kind]))
        elif kind == _STRING:
            if count > MAX_TEXTS or count * 8 > self.size:
                raise self.bad(f"an array of {count} texts")
            self._skip_texts(count)
        else:
            raise self.bad(f"an array of type {kind}")
        return int(count)

    def _skip_texts(self, count: int) -> None:
        """Skip so many texts. In large reads: vocabularies have hundreds of thousands, and each list shows them."""
        unpack, head = _LENGTH.unpack_from, _LENGTH.size
        data, at = b"", 0
        for _ in range(count):
            if at + head > len(data):
                data, at = data[at:] + self._file.read(_CHUNK_BYTES), 0
                if len(data) < head:
                    raise self.bad("it ends early")
            at += head + unpack(data, at)[0]
            if at > len(data):
                self.skip(at - len(data))
                data, at = b"", 0
        self._file.seek(at - len(data), 1)


def read_gguf(path: Path) -> GgufInfo:
    """The header of a file. Raises ModelLoadFailed, naming the file and what is wrong with it."""
    try:
        with open_file(path) as file:
            return _read(_Reader(file, path), path)
    except OSError as error:
        raise ModelLoadFailed(f"{path.name} can't be read: {error.strerror}", detail=str(path)) from error
    except (ValueError, OverflowError, MemoryError, struct.error) as error:
        why = f"{path.name} is not a readable GGUF file: {error}"
        raise ModelLoadFailed(why, detail=str(path)) from error


def _read(reader: _Reader, path: Path) -> GgufInfo:
    if reader.take(4) != MAGIC:
        raise reader.bad("it does not begin with GGUF")
    version = reader.scalar("I")
    if version not in (2, 3):
        raise reader.bad(f"version {version} is not supported")
    tensors, keys = reader.scalar("Q"), reader.scalar("Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise reader.bad(f"{tensors} tensors and {keys} keys")
    metadata: dict[str, Scalar] = {}
    for _ in range(keys):
        key = reader.string(MAX_KEY_BYTES)
        metadata[key] = reader.value(reader.scalar("I"), largest=key.endswith(_BY_LAYER))
    parameters = sum(_tensor(reader) for _ in range(tensors))
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise reader.bad("it names no architecture")
    context = metadata.get(f"{architecture}.context_length")
    template = metadata.get("tokenizer.chat_template")
    license = metadata.get("general.license.name") or metadata.get("general.license")
    return GgufInfo(
        architecture=architecture,
        quantization=_quantization(metadata, path),
        parameters=parameters if 0 < parameters <= MAX_PARAMETERS else None,
        context_length=context if type(context) is int and context > 0 else None,
        chat_template=template if isinstance(template, str) else None,
        license=license if isinstance(license, str) else None,
        size_bytes=reader.size,
        metadata=metadata,
    )


def _tensor(reader: _Reader) -> int:
    """Skip one tensor's entry; the numbers in it."""
    name = reader.scalar("Q")
    if not name:
        raise reader.bad("a tensor without a name")
    reader.skip(name)
    dimensions = reader.scalar("I")
    if dimensions > MAX_DIMENSIONS:
        raise reader.bad(f"a tensor of {dimensions} dimensions")
    count = 1
    for _ in range(dimensions):
        count *= reader.scalar("Q")
    reader.skip(4 + 8)
    return count


def _quantization(metadata: dict[str, Scalar], path: Path) -> str | None:
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int) and file_type in _FILE_TYPES:
        return _FILE_TYPES[file_type]
    match = _QUANT_IN_NAME.search(path.name)
    return match[1].upper() if match else None
