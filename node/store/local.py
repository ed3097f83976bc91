"""Models in the node's own store: ``LLMLB_HOME/models/<owner>/<model>/``.

A folder with GGUF files is a GGUF model (one for each quantization in it; a sharded one is one model; ``mmproj*.gguf``
beside it is its projector); a folder with ``config.json`` and ``*.safetensors`` is a Safetensors model.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmlb.bus.errors import ModelLoadFailed
from llmlb.bus.messages.models import ModelInfo
from llmlb.node.store.catalog import MAX_NAME, StoredModel
from llmlb.node.store.gguf import read_gguf

log = logging.getLogger("llmlb.node.store.local")

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_PART = re.compile(r"[A-Za-z0-9_.:-]+")
MAX_JSON_BYTES = 16 * 1024 * 1024


class LocalSource:
    """The models under a folder. What can't be read is logged once and left out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._said: set[str] = set()

    def scan(self) -> Iterable[StoredModel]:
        models: list[StoredModel] = []
        for folder in sorted(self._root.glob("*/*/")):
            name = f"{folder.parent.name}/{folder.name}"
            if len(name) > MAX_NAME or not all(_PART.fullmatch(part) for part in name.split("/")):
                continue
            try:
                models += self._models(folder, name)
            except (ModelLoadFailed, OSError, ValueError) as error:
                self._say(name, str(error))
        return models

    def _say(self, name: str, why: str) -> None:
        if (line := f"{name}: {why}") not in self._said:
            self._said.add(line)
            log.warning("model_unreadable model=%s error=%s", name, why)

    def _models(self, folder: Path, name: str) -> list[StoredModel]:
        files = sorted(folder.glob("*.gguf"))
        if not files:
            return self._safetensors(folder, name)
        projectors = [path for path in files if path.name.lower().startswith("mmproj")]
        firsts = [path for path in files if path not in projectors and not _is_later_shard(path)]
        found: list[StoredModel] = []
        for path in firsts:
            try:
                found.append(_gguf(path, name, projectors[0] if projectors else None))
            except ModelLoadFailed as error:
                self._say(f"{name} {path.name}", error.message)
        if len(found) > 1:
            found = [_renamed(model, f"{name}:{model.info.quantization or model.path.stem}") for model in found]
        return found

    def _safetensors(self, folder: Path, name: str) -> list[StoredModel]:
        weights = sorted(folder.glob("*.safetensors"))
        if not weights or not (folder / "config.json").is_file():
            return []
        config = _json(folder / "config.json")
        template = _template(folder)
        architectures = config.get("architectures")
        info = ModelInfo(
            name=name,
            format="Safetensors",
            size_bytes=sum(path.stat().st_size for path in weights),
            architecture=str(config.get("model_type") or (architectures or ["unknown"])[0]),
            quantization=str(config.get("torch_dtype") or config.get("dtype") or "") or None,
            context_length=config.get("max_position_embeddings"),
            source="Local",
            created_at=weights[0].stat().st_mtime,
        )
        metadata = {key: str(value) for key, value in config.items() if isinstance(value, str | int | float | bool)}
        return [StoredModel(info, folder, template, None, None, metadata)]


def _is_later_shard(path: Path) -> bool:
    match = _SHARD.search(path.name)
    return match is not None and int(match[1]) > 1


def _shards(path: Path) -> list[Path]:
    """All files of a model. Raises ModelLoadFailed when one is missing."""
    match = _SHARD.search(path.name)
    if match is None:
        return [path]
    count = int(match[2])
    files = [path.with_name(f"{path.name[: match.start()]}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelLoadFailed(f"{path.name}: {len(missing)} of {count} files are missing, first {missing[0]}")
    return files


def _gguf(path: Path, name: str, projector: Path | None) -> StoredModel:
    header = read_gguf(path)
    files = _shards(path)
    info = ModelInfo(
        name=name,
        format="GGUF",
        size_bytes=sum(file.stat().st_size for file in files) + (projector.stat().st_size if projector else 0),
        architecture=header.architecture,
        quantization=header.quantization,
        parameters=header.parameters if len(files) == 1 else None,
        context_length=header.context_length,
        source="Local",
        created_at=path.stat().st_mtime,
    )
    metadata = {key: str(value) for key, value in header.metadata.items()}
    return StoredModel(info, path, header.chat_template, header.license, None, metadata, projector)


def _renamed(model: StoredModel, name: str) -> StoredModel:
    info = model.info.model_copy(update={"name": name})
    return StoredModel(info, model.path, model.template, model.license, model.system, model.metadata, model.projector)


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is too large")
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _template(folder: Path) -> str | None:
    """The chat template of a Safetensors model: a file of its own, or in the tokenizer's settings."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text()
    config = folder / "tokenizer_config.json"
    template = _json(config).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else None
