"""A plan of files as a manifest that is stored with a registration, and back. Pure; for nodes and routers."""

from __future__ import annotations

from llmlb.bus.errors import PullFailed
from llmlb.bus.hub_names import Wanted
from llmlb.bus.hub_plan import Plan, PlannedFile, is_safe
from llmlb.bus.messages.models import ManifestFile, ModelManifest


def manifest_of(plan: Plan, repo: str) -> ModelManifest:
    """``repo``: as the hub spells it."""
    return ModelManifest(
        repo=repo,
        revision=plan.revision,
        format=plan.format,
        quantization=plan.quantization,
        files=tuple(
            ManifestFile(path=file.path, local=file.local, size_bytes=file.size, oid=file.oid) for file in plan.files
        ),
    )


def planned(manifest: ModelManifest, wanted: Wanted) -> Plan:
    """What to fetch for ``wanted``. Raises PullFailed: no file, a name that leads out of its folder or comes twice.

    A manifest crosses the bus, so its names are as little to be trusted as those that a hub lists.
    """
    names = [file.local for file in manifest.files]
    if not names:
        raise PullFailed(f"the registration of {wanted.repo} names no file")
    for file in manifest.files:
        if not is_safe(file.path) or not is_safe(file.local) or "/" in file.local:
            raise PullFailed(f"the registration of {wanted.repo} names a file that can't be stored")
    if len(set(names)) != len(names):
        raise PullFailed(f"the registration of {wanted.repo} names a file twice")
    files = tuple(PlannedFile(file.path, file.local, file.size_bytes, file.oid) for file in manifest.files)
    return Plan(wanted, manifest.revision, manifest.format, manifest.quantization, files)
