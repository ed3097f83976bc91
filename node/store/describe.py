"""From the headers of a model's files to what is told of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmlb.bus.errors import ModelLoadFailed
from llmlb.bus.hub_plan import quant_of
from llmlb.bus.messages.models import ModelInfo
from llmlb.node.store import headers
from llmlb.node.store.catalog import StoredModel
from llmlb.node.store.files import MAX_JSON_BYTES, open_file, read_object, read_text
from llmlb.node.store.gguf import GgufInfo
from llmlb.node.store.safetensors import architecture_of, context_length_of, parameters_of, quantization_of

log = logging.getLogger("llmlb.node.store.describe")

MAX_LICENSE_BYTES = 64 * 1024
MAX_LICENSE_LINE = 200
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "license", "license.txt")
_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}\\<]{1,4000})<\|im_end\|>")


def default_system(template: str | None) -> str | None:
    """The system prompt that a ChatML template has for conversations without one, as SmolLM2's and Qwen2.5's.

    Only a text that stands whole in the template, and only when it has just one; else None: not known.
    """
    found = {text.strip() for text in _SYSTEM.findall(template or "")} - {""}
    return found.pop() if len(found) == 1 else None


def describe_gguf(name: str, shards: Sequence[Path], projector: Path | None, infos: Sequence[GgufInfo]) -> StoredModel:
    """A GGUF model. ``infos``: the headers of its shards, in order. Raises OSError."""
    first = infos[0]
    files = (*shards, *([projector] if projector else []))
    info = ModelInfo(
        name=name,
        format="GGUF",
        size_bytes=sum(file.stat().st_size for file in files),
        architecture=first.architecture,
        quantization=quant_of(shards[0].name) or first.quantization,
        parameters=sum(each.parameters or 0 for each in infos) or None,
        context_length=first.context_length,
        source="Local",
        created_at=shards[0].stat().st_mtime,
    )
    return StoredModel(
        info=info,
        path=shards[0],
        template=first.chat_template,
        license=first.license,
        system=default_system(first.chat_template),
        metadata={key: str(value) for key, value in first.metadata.items()},
        projector=projector,
        files=files,
    )


def describe_safetensors(name: str, folder: Path, weights: Sequence[Path], files: Sequence[Path] | None) -> StoredModel:
    """A Safetensors model. ``files``: all of it where a manifest says so. Raises OSError, ValueError."""
    config = read_object(folder / "config.json")
    tokenizer = _tokenizer(folder)
    template = _template(folder, tokenizer)
    info = ModelInfo(
        name=name,
        format="Safetensors",
        size_bytes=sum(path.stat().st_size for path in weights),
        architecture=architecture_of(config),
        quantization=quantization_of(config),
        parameters=_parameters(name, weights, config),
        context_length=context_length_of(config, tokenizer),
        source="Local",
        created_at=weights[0].stat().st_mtime,
    )
    metadata = {key: str(value) for key, value in config.items() if isinstance(value, str | int | float | bool)}
    return StoredModel(
        info=info,
        path=folder,
        template=template,
        license=_license(folder),
        system=default_system(template),
        metadata=metadata,
        files=tuple(files if files is not None else weights),
    )


def _parameters(name: str, weights: Sequence[Path], config: dict[str, Any]) -> int | None:
    """None when a header can't be read: whether the model works is for the engine to find out."""
    try:
        return parameters_of([headers.safetensors.get(path) for path in weights], config)
    except (ModelLoadFailed, OSError) as error:
        log.debug("parameters_unknown model=%s error=%s", name, error)
        return None


def _tokenizer(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / "tokenizer_config.json")
    except FileNotFoundError:
        return {}


def _template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    """The chat template of a Safetensors model: a file of its own, or in the tokenizer's settings."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return read_text(own, MAX_JSON_BYTES)
    beside = folder / "chat_template.json"
    template = read_object(beside).get("chat_template") if beside.is_file() else tokenizer.get("chat_template")
    if isinstance(template, list):  # several, by name. Source: transformers, "default" is the one for chats
        named = (each.get("template") for each in template if isinstance(each, dict) and each.get("name") == "default")
        template = next(named, None)
    return template if isinstance(template, str) else None


def _license(folder: Path) -> str | None:
    """The first line of its licence that has words in it."""
    for name in _LICENSES:
        try:
            with open_file(folder / name) as file:
                text = file.read(MAX_LICENSE_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        for line in text.splitlines():
            if shown := line.strip(" \t#*=-"):
                return shown[:MAX_LICENSE_LINE]
    return None
