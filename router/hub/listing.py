"""The list of supported and registered models. Pure: whoever is asked for states and counts has them at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmlb.bus.hub_plan import quant_of
from llmlb.bus.messages.hub import HubModel
from llmlb.bus.messages.models import RegisteredModel
from llmlb.router.hub import states
from llmlb.router.hub.shown import page_url
from llmlb.router.hub.states import Seat
from llmlb.router.hub.supported import SupportedModel

Counts = Callable[[str], tuple[int, int] | None]
"""Repository → (downloads, likes)."""

PLATFORMS = {
    "llama.cpp": ("linux-cpu", "linux-cuda", "macos-metal", "windows-cuda"),
    "vllm": ("linux-cuda", "linux-cpu"),
}


def id_of(model: SupportedModel) -> str:
    """The name under which a supported model is registered."""
    if model.format == "safetensors" or model.quantization is None:
        return model.repo
    return f"{model.repo}:{quant_of(model.recommended_filename) or model.quantization}"


def shown(
    supported: Sequence[SupportedModel],
    records: Mapping[str, RegisteredModel],
    endpoint: str,
    seats_of: Callable[[RegisteredModel], Sequence[Seat]],
    counts: Counts,
) -> tuple[HubModel, ...]:
    """The supported ones in the order of their list, then the other registered ones by name."""
    left = {name.lower(): record for name, record in records.items()}
    found = []
    for model in supported:
        record = left.pop(id_of(model).lower(), None)
        if record is not None:
            found.append(of_record(record, supported, endpoint, seats_of(record), counts))
        else:
            found.append(_of_supported(model, endpoint, counts))
    for _, record in sorted(left.items()):
        found.append(of_record(record, supported, endpoint, seats_of(record), counts))
    return tuple(found)


def _fields(model: SupportedModel) -> dict[str, Any]:
    return {
        "supported_id": model.id,
        "source": "supported",
        "name": model.name,
        "description": model.description,
        "repo": model.repo,
        "filename": model.recommended_filename,
        "size_bytes": model.size_bytes,
        "required_memory_bytes": model.required_memory_bytes,
        "quantization": model.quantization,
        "parameter_count": model.parameter_count,
        "context_length": model.context_length,
        "format": model.format,
        "engine": model.engine,
        "platforms": model.platforms,
        "tags": model.tags,
        "capabilities": model.capabilities,
    }


def _of_supported(model: SupportedModel, endpoint: str, counts: Counts) -> HubModel:
    downloads, likes = counts(model.repo) or (None, None)
    # Every value was checked when the list was read.
    return HubModel.model_construct(
        id=id_of(model),
        url=page_url(endpoint, model.repo),
        status="available",
        downloads=downloads,
        likes=likes,
        **_fields(model),
    )


def of_record(
    record: RegisteredModel,
    supported: Sequence[SupportedModel],
    endpoint: str,
    seats: Sequence[Seat],
    counts: Counts,
) -> HubModel:
    """A registered model; what the list of supported ones says of it, and what is known better."""
    summary = states.summed_up(record, seats)
    repo, manifest = record.name.partition(":")[0], record.manifest
    downloads, likes = counts(repo) or (None, None)
    listed = next((model for model in supported if id_of(model).lower() == record.name.lower()), None)
    fields = _of_unlisted(record) if listed is None else _fields(listed)
    if manifest is not None:
        fields |= {"filename": manifest.files[0].path, "size_bytes": manifest.size_bytes}
    if record.display_name is not None:
        fields["name"] = record.display_name
    return HubModel.model_construct(
        id=record.name,
        url=page_url(endpoint, repo),
        status=summary.status,
        lifecycle_status=summary.lifecycle,
        nodes=summary.shown,
        nodes_ready=summary.ready,
        nodes_total=summary.total,
        aliases=record.aliases,
        warnings=record.warnings,
        revision=None if manifest is None else manifest.revision,
        registered_at=record.registered_at,
        registered_by=record.registered_by,
        downloads=downloads,
        likes=likes,
        **fields,
    )


def _of_unlisted(record: RegisteredModel) -> dict[str, Any]:
    """A model that was registered by its address."""
    manifest = record.manifest
    gguf = manifest is None or manifest.format == "GGUF"
    if record.conversion_pending:
        gguf = False
    engine = "llama.cpp" if gguf else "vllm"
    return {
        "source": "hub",
        "name": record.name.rpartition("/")[2],
        "repo": record.name.partition(":")[0],
        "filename": record.file,
        "quantization": None if manifest is None else manifest.quantization,
        "required_memory_bytes": record.required_memory_bytes,
        "context_length": record.context_length,
        "format": "gguf" if gguf else "safetensors",
        "engine": engine,
        "platforms": PLATFORMS[engine],
    }
