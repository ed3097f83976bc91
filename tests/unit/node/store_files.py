"""Model files of a few hundred bytes, and pulls of them, for tests of the store."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Literal

from llmlb.bus.hub_names import parse_name
from llmlb.bus.hub_plan import Plan, RepoFile, plan
from llmlb.node.store.installed import Installed, Store

COMMIT = "c" * 40


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(
    *,
    file_type: int = 15,
    tensors: tuple[tuple[int, ...], ...] = ((3, 4),),
    template: str | None = None,
    salt: str = "",
    license: str | None = "mit",
) -> bytes:
    """A GGUF header, file type Q4_K_M unless said otherwise; ``salt`` makes files of the same size differ."""
    metadata = [("general.architecture", 8, _text("llama")), ("general.file_type", 4, struct.pack("<I", file_type))]
    metadata += [("llama.context_length", 4, struct.pack("<I", 2048)), ("general.salt", 8, _text(salt))]
    if license is not None:
        metadata.append(("general.license", 8, _text(license)))
    if template is not None:
        metadata.append(("tokenizer.chat_template", 8, _text(template)))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, kind, value in metadata:
        out += _text(key) + struct.pack("<I", kind) + value
    for number, shape in enumerate(tensors):
        out += _text(f"w{number}") + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", 0, 0)
    return out


def safetensors(**tensors: tuple[str, list[int]]) -> bytes:
    """A Safetensors header: name → (dtype, shape)."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in tensors.items()
    }
    data = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(data)) + data


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def planned(name: str, files: dict[str, bytes], revision: str = COMMIT) -> Plan:
    """The plan of a pull from a repo that has these files."""
    listed = [RepoFile(path, len(data), sha256(data)) for path, data in files.items()]
    return plan(parse_name(name), listed, revision)


def stage(store: Store, todo: Plan, files: dict[str, bytes]) -> dict[str, str | None]:
    """What a pull does: the plan's files in the staging folder; their digests."""
    folder = store.staging(todo)
    for file in todo.files:
        (folder / file.local).write_bytes(files[file.path])
    return {file.local: sha256(files[file.path]) for file in todo.files}


def pull(
    store: Store,
    name: str,
    files: dict[str, bytes],
    *,
    origin: Literal["user", "sync"] = "user",
    revision: str = COMMIT,
    taken: tuple[str, ...] = (),
    endpoint: str = "https://huggingface.co",
) -> Installed:
    """Stage and install."""
    todo = planned(name, files, revision)
    digests = stage(store, todo, files)
    return store.install(todo, digests, origin=origin, endpoint=endpoint, taken_aliases=taken)


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes; not what the node keeps for itself (``.headers.json``)."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.parent != root]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}
