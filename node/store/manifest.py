"""What is written beside a pulled model: where it is from, which files it has, how it is called.

``manifest-<label>.json`` in the model's folder; the label is its quantization, ``safetensors``, or the file's stem.
JSON with ``format`` 1; unknown fields are ignored, so that an older version reads what a newer one wrote.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import orjson

from llmlb.node.store.files import read_object, write_whole

FORMAT = 1
PREFIX = "manifest-"
MAX_BYTES = 4 * 1024 * 1024
MAX_FILES = 10_000
MAX_LABEL = 100

Origin = Literal["user", "sync"]
"""Who wanted it: somebody on this node, or the cluster's registry."""

_ALIAS = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_WRITING = threading.Lock()
"""One writes manifests at a time: what a thread that notes the last use has read must not come back over what an
installation or a removal did meanwhile."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file. ``name`` here, ``path`` in the repo, ``size`` in bytes; ``oid`` as the hub names the content."""

    name: str
    path: str
    size: int
    sha256: str | None = None
    oid: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One pulled model. The files are in the order of the plan: weights first. Times in Unix seconds."""

    label: str
    model_format: Literal["GGUF", "Safetensors"]
    quantization: str | None
    endpoint: str
    repo: str
    revision: str
    files: tuple[ManifestFile, ...]
    aliases: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ("user",)
    created_at: float = 0.0
    last_used_at: float | None = None
    source: str = "HuggingFace"

    @property
    def entry(self) -> str:
        """The file by which the model is seen: a GGUF's first shard, a Safetensors model's config.json."""
        return "config.json" if self.model_format == "Safetensors" else self.files[0].name

    def names(self) -> frozenset[str]:
        """The names of its files."""
        return frozenset(file.name for file in self.files)

    def encoded(self) -> bytes:
        return orjson.dumps({"format": FORMAT, **asdict(self)}, option=orjson.OPT_INDENT_2)

    def disagreement(self, folder: Path) -> str | None:
        """What is not on the disk as it says, None when all is. Looks at sizes, not at contents."""
        for file in self.files:
            try:
                size = (folder / file.name).stat().st_size
            except OSError:
                return f"{file.name} is missing"
            if size != file.size:
                return f"{file.name} has {size} bytes instead of {file.size}"
        return None

    def with_origin(self, origin: Origin) -> Manifest:
        return self if origin in self.origins else replace(self, origins=(*self.origins, origin))


def safe_label(text: str) -> str:
    """A quantization or a stem, as it can be part of a file's name and of a model's name."""
    return (_UNSAFE.sub("_", text).strip("._")[:MAX_LABEL] or "model").replace("..", ".")


def manifest_path(folder: Path, label: str) -> Path:
    return folder / f"{PREFIX}{label}.json"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Raises OSError; the old one is then still whole."""
    with _WRITING:
        write_whole(manifest_path(folder, manifest.label), manifest.encoded())


def remove_manifest(path: Path) -> int:
    """Returns the bytes it had, 0 when there is none. Raises OSError."""
    with _WRITING:
        try:
            size = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size


def update_manifest(path: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Read, change, write; of several threads one after the other. Raises OSError, ValueError."""
    with _WRITING:
        before = read_manifest(path)
        after = change(before)
        if after != before:
            write_whole(path, after.encoded())


def read_manifest(path: Path) -> Manifest:
    """Raises OSError, ValueError: what is wrong with it."""
    return parse_manifest(read_object(path, MAX_BYTES))


def parse_manifest(value: Any) -> Manifest:
    """Raises ValueError."""
    try:
        return _parsed(value)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"it is damaged: {error!r}") from error


def _parsed(value: dict[str, Any]) -> Manifest:
    if value["format"] != FORMAT:
        raise ValueError(f"a manifest of format {value['format']!r} is not known here")
    if value["model_format"] not in ("GGUF", "Safetensors"):
        raise ValueError(f"the model format {value['model_format']!r} is not known here")
    files = tuple(_file(each) for each in value["files"][:MAX_FILES])
    if not files:
        raise ValueError("a manifest without files")
    used = value.get("last_used_at")
    return Manifest(
        label=safe_label(str(value["label"])),
        model_format=value["model_format"],
        quantization=_optional(value.get("quantization")),
        endpoint=str(value.get("endpoint") or ""),
        repo=str(value["repo"]),
        revision=str(value.get("revision") or ""),
        files=files,
        aliases=tuple(alias for alias in value.get("aliases") or () if _ALIAS.fullmatch(alias)),
        origins=tuple(origin for origin in value.get("origins") or () if origin in ("user", "sync")),
        created_at=float(value.get("created_at") or 0.0),
        last_used_at=None if used is None else float(used),
        source=str(value.get("source") or "HuggingFace"),
    )


def _file(value: dict[str, Any]) -> ManifestFile:
    name, size = str(value["name"]), int(value["size"])
    if not name or "/" in name or "\0" in name or name in (".", "..") or size < 0:
        raise ValueError(f"{name[:80]!r} is no file of a model")
    sha256, oid = _optional(value.get("sha256")), _optional(value.get("oid"))
    return ManifestFile(name, str(value.get("path") or name), size, sha256, oid)


def _optional(value: Any) -> str | None:
    return None if value is None else str(value)
