"""The hub's answers as data: what is not as expected is left out, never believed. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.hub_names import parse_name
from llmlb.bus.hub_plan import RepoFile

MAX_FILES = 10_000
"""Of a repository: what is beyond is not looked at."""
MAX_TAGS = 64
MAX_TEXT = 512
MOST = 1 << 62
"""Of any number: what is larger is no count of bytes or downloads."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository. ``files`` have size -1 where the hub did not tell sizes (in a search it never does)."""

    id: str
    commit: str | None
    files: tuple[RepoFile, ...]
    last_modified: str | None = None
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    tags: tuple[str, ...] = ()
    context_length: int | None = None
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Some results of a search. ``next``: the address of those behind; None: these are the last."""

    models: tuple[Repository, ...]
    next: str | None = None


def batch_of(body: Any) -> Batch:
    """The models of a search's answer."""
    items = body if isinstance(body, list) else []
    return Batch(tuple(found for item in items if (found := repository_of(item)) is not None))


def repository_of(item: Any) -> Repository | None:
    """A repository; None when it has no name that can be used."""
    if not isinstance(item, dict):
        return None
    name = _text(item.get("id")) or _text(item.get("modelId"))
    try:
        if name is None or parse_name(name).repo != name:
            return None
    except InvalidRequest:
        return None
    gguf = item.get("gguf")
    gguf = gguf if isinstance(gguf, dict) else {}
    tags = item.get("tags")
    return Repository(
        id=name,
        commit=_text(item.get("sha")),
        files=_files(item.get("siblings")),
        last_modified=_text(item.get("lastModified")),
        downloads=_number(item.get("downloads")) or 0,
        likes=_number(item.get("likes")) or 0,
        gated=bool(item.get("gated")),
        tags=tuple(tag for tag in map(_text, tags[:MAX_TAGS]) if tag) if isinstance(tags, list) else (),
        context_length=_number(gguf.get("context_length")) or None,
        parameters=_number(gguf.get("total")) or None,
    )


def _files(siblings: Any) -> tuple[RepoFile, ...]:
    found = []
    for item in siblings[:MAX_FILES] if isinstance(siblings, list) else ():
        path = _text(item.get("rfilename")) if isinstance(item, dict) else None
        if path is None:
            continue
        size, lfs = _number(item.get("size")), item.get("lfs")
        oid = _text(lfs.get("sha256")) if isinstance(lfs, dict) else _text(item.get("blobId"))
        found.append(RepoFile(path, -1 if size is None else size, oid))
    return tuple(found)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_TEXT else None


def _number(value: Any) -> int | None:
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST
    return int(value) if usable else None


def as_json(repo: Repository) -> dict[str, Any]:
    """For the cache: in the hub's own form, so that one reader does."""
    return {
        "id": repo.id,
        "sha": repo.commit,
        "lastModified": repo.last_modified,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "gated": repo.gated,
        "tags": list(repo.tags),
        "gguf": {"context_length": repo.context_length, "total": repo.parameters},
        "siblings": list(_siblings(repo.files)),
    }


def _siblings(files: Iterable[RepoFile]) -> Iterable[dict[str, Any]]:
    for file in files:
        known = {} if file.size < 0 else {"size": file.size}
        yield {"rfilename": file.path, **known, "blobId": file.oid}
