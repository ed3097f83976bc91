"""Under which names the files of a plan go into the model's folder. Pure, but for looking what is there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from llmlb.bus.errors import Conflict
from llmlb.bus.hub_plan import Plan, PlannedFile
from llmlb.node.store.local import SAFETENSORS
from llmlb.node.store.manifest import Manifest, ManifestFile, safe_label

_END = re.compile(r"(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)


def label_for(plan: Plan, manifests: Collection[Manifest]) -> str:
    """The label of a plan's manifest: that of the one it replaces, else one that is free.

    It replaces a manifest of the same file of the repo, or the Safetensors model.
    """
    if plan.format == "Safetensors":
        return SAFETENSORS
    first = plan.files[0]
    for manifest in manifests:
        if manifest.model_format == "GGUF" and manifest.files[0].path == first.path:
            return manifest.label
    taken = {manifest.label.lower() for manifest in manifests}
    stem = safe_label(_END.sub("", first.local))
    choices = [safe_label(plan.quantization)] if plan.quantization else []
    choices += [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
    return next(choice for choice in choices if choice.lower() not in taken)


def place(
    plan: Plan,
    digests: Mapping[str, str | None],
    folder: Path,
    label: str,
    old: Manifest | None,
    others: Collection[Manifest],
) -> dict[str, ManifestFile]:
    """Local name of each staged file → what it becomes in ``folder``.

    A file of the ``old`` manifest is replaced. One that belongs to another model, or to nobody, and has other content
    stays: the new one gets the label into its name. Raises Conflict where that is no way out (Safetensors).
    """
    mine = frozenset() if old is None else old.names()
    owned = {file.name: file for manifest in others for file in manifest.files}

    def in_the_way(name: str, file: ManifestFile) -> bool:
        if name in mine and name not in owned:
            return False
        there = folder / name
        if not there.exists():
            return False
        known = owned.get(name)
        if known is not None and known.sha256 and file.sha256:
            return known.sha256 != file.sha256
        return there.stat().st_size != file.size

    files = [_made(planned, digests) for planned in plan.files]
    names = {file.name: file.name for file in files}
    for number in range(1, 100):
        if not any(in_the_way(names[file.name], file) for file in files):
            return {file.name: _renamed(file, names[file.name]) for file in files}
        if plan.format == "Safetensors":
            break
        mark = label if number == 1 else f"{label}-{number}"
        moved = {file.name for file in files if in_the_way(file.name, file) or _is_shard(file.name)}
        names = {file.name: _marked(file.name, mark) if file.name in moved else file.name for file in files}
    what = next(names[file.name] for file in files if in_the_way(names[file.name], file))
    raise Conflict(f"{folder} has another {what}, which was not pulled: move it away", param="model")


def _made(planned: PlannedFile, digests: Mapping[str, str | None]) -> ManifestFile:
    sha256 = digests.get(planned.local)
    return ManifestFile(planned.local, planned.path, planned.size, sha256, planned.oid)


def _renamed(file: ManifestFile, name: str) -> ManifestFile:
    return ManifestFile(name, file.path, file.size, file.sha256, file.oid)


def _is_shard(name: str) -> bool:
    match = _END.search(name)
    return match is not None and match[0].lower() != ".gguf"


def _marked(name: str, mark: str) -> str:
    """``model-00001-of-00002.gguf`` with a mark: ``model-Q8_0-00001-of-00002.gguf``."""
    match = _END.search(name)
    return f"{name}-{mark}" if match is None else f"{name[: match.start()]}-{mark}{match[0]}"
