"""A repository of the hub as the catalog shows it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote

from llmlb.bus.hub_names import without_credentials
from llmlb.bus.hub_plan import Variant, variants
from llmlb.bus.messages.hub import CatalogModel, CatalogVariant
from llmlb.router.hub import fit
from llmlb.router.hub.answers import Repository
from llmlb.router.hub.fit import Room

MOST_NODES = 8
"""Named for each variant."""


def page_url(endpoint: str, repo: str) -> str:
    return f"{without_credentials(endpoint)}/{repo}"


def file_url(endpoint: str, repo: str, path: str, revision: str = "main") -> str:
    """Where a file's bytes are."""
    return f"{page_url(endpoint, repo)}/resolve/{quote(revision, safe='')}/{quote(path)}"


def catalog_model(
    repo: Repository,
    endpoint: str,
    rooms: Sequence[Room],
    is_registered: Callable[[str], bool],
    *,
    quant: str | None = None,
) -> CatalogModel:
    """With its variants by size, those of one quantization if that is asked for."""
    asked = None if quant is None else quant.upper().removeprefix("UD-")
    found = variants(repo.files)
    whole = [each for each in found if each.whole]
    chosen = [each for each in whole if asked is None or (each.label or "").removeprefix("UD-") == asked]
    shown = [_variant(each, found, repo, endpoint, rooms, is_registered) for each in chosen]
    return CatalogModel(
        id=repo.id,
        last_modified=repo.last_modified,
        downloads=repo.downloads,
        likes=repo.likes,
        gated=repo.gated,
        tags=repo.tags,
        context_length=repo.context_length,
        url=page_url(endpoint, repo.id),
        variants=tuple(sorted(shown, key=lambda each: (each.size_bytes or 0, each.id))),
    )


def tag_of(variant: Variant, among: Sequence[Variant]) -> str:
    """What follows the colon in a variant's name. Of several files of one quantization only the first goes by it."""
    alike = [each for each in among if each.label == variant.label]
    first = variant.label is not None and alike[0] == variant
    return variant.tag if first else variant.stem.rpartition("/")[2]


def _variant(
    variant: Variant,
    among: Sequence[Variant],
    repo: Repository,
    endpoint: str,
    rooms: Sequence[Room],
    is_registered: Callable[[str], bool],
) -> CatalogVariant:
    name = f"{repo.id}:{tag_of(variant, among)}"
    size = sum(file.size for file in variant.files) if all(file.size >= 0 for file in variant.files) else None
    required = None if size is None else fit.required_bytes(size, repo.parameters)
    fitting = [] if required is None else [room.node_id for room in rooms if fit.fits(room, required)]
    return CatalogVariant(
        id=name,
        files=tuple(file.path for file in variant.files),
        quantization=variant.label,
        size_bytes=size,
        url=file_url(endpoint, repo.id, variant.files[0].path),
        required_memory_bytes=required,
        registered=is_registered(name),
        fits_count=None if required is None else len(fitting),
        fits_nodes=tuple(fitting[:MOST_NODES]),
    )
