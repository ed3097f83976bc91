"""The list of supported models: ``supported_models.json`` beside this file, and the operator's own file.

``LLMLB_SUPPORTED_MODELS`` names a JSON file: a list of models, which are added, and replace those of the same id; or an
object ``{"mode": "replace", "models": [...]}`` that stands in place of the list that comes with llmlb.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmlb.bus.errors import ConfigError, InvalidRequest
from llmlb.bus.hub_names import parse_name

MAX_BYTES = 16 * 1024 * 1024


class SupportedModel(BaseModel):
    """One model. Source of the fields: supported-models.md, "supported_models.json schema"; context_length on top."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=100, pattern=r"^[a-z0-9][a-z0-9._-]*$", description="unique in the list")
    name: str = Field(min_length=1, max_length=200, description="for people")
    description: str = Field(min_length=1, max_length=1000, description="one or two sentences")
    repo: str = Field(min_length=3, max_length=200, description="owner/model on the hub")
    recommended_filename: str = Field(min_length=1, max_length=512, description="its (first) file")
    size_bytes: int = Field(gt=0, description="bytes of all its files")
    required_memory_bytes: int = Field(gt=0, description="by the rule of llmlb.router.hub.fit")
    tags: tuple[str, ...] = Field(description="small, medium, large, chat, code, reasoning, vision, embedding …")
    capabilities: tuple[Literal["TextGeneration", "Vision", "Embedding", "ToolUse", "Reasoning"], ...] = Field(
        min_length=1, description="what it can be asked for"
    )
    quantization: str | None = Field(description="Q4_K_M …; null for Safetensors")
    parameter_count: str = Field(min_length=1, max_length=32, description="such as 7.6B")
    format: Literal["gguf", "safetensors"] = Field(description="of its files")
    engine: Literal["llama.cpp", "vllm"] = Field(description="what runs it")
    platforms: tuple[Literal["linux-cpu", "linux-cuda", "macos-metal", "windows-cuda"], ...] = Field(
        min_length=1, description="where that engine runs"
    )
    context_length: int = Field(gt=0, description="tokens it was trained for")


def load(own: Path | None = None) -> tuple[SupportedModel, ...]:
    """The list, in its order. Raises ConfigError naming the file, the model and the field that is wrong."""
    text = resources.files("llmlb.router.hub").joinpath("supported_models.json").read_bytes()
    models = _checked("supported_models.json", orjson.loads(text))
    if own is None:
        return models
    body = _read(own)
    replace = False
    if isinstance(body, dict):
        if body.keys() - {"mode", "models"} or body.get("mode", "add") not in ("add", "replace"):
            raise ConfigError(f"{own}: use a list of models, or an object with mode (add or replace) and models")
        replace, body = body.get("mode") == "replace", body.get("models")
    ours = _checked(str(own), body)
    if replace:
        return ours
    changed = {model.id: model for model in ours}
    kept = tuple(changed.pop(model.id, model) for model in models)
    return (*kept, *changed.values())


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"LLMLB_SUPPORTED_MODELS: {path} is larger than {MAX_BYTES} bytes")
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"LLMLB_SUPPORTED_MODELS: {path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"LLMLB_SUPPORTED_MODELS: {path} is not JSON: {error}") from error


def _checked(where: str, items: Any) -> tuple[SupportedModel, ...]:
    if not isinstance(items, list):
        raise ConfigError(f"{where}: a list of models is needed")
    found: list[SupportedModel] = []
    for index, item in enumerate(items):
        name = item.get("id", f"number {index}") if isinstance(item, dict) else f"number {index}"
        try:
            model = SupportedModel.model_validate(item)
            if parse_name(model.repo).repo != model.repo:
                raise ConfigError(f"{where}: {name}: repo: use owner/model")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{where}: {name}: {field or 'model'}: {first['msg']}") from error
        except InvalidRequest as error:
            raise ConfigError(f"{where}: {name}: repo: {error.message}") from error
        found.append(model)
    twice = _twice([model.id for model in found])
    if twice is not None:
        raise ConfigError(f"{where}: the id {twice} is there twice")
    return tuple(found)


def _twice(ids: Sequence[str]) -> str | None:
    return next((each for each in ids if ids.count(each) > 1), None)
