"""The files of a pull before they are a model: whether they can become one, how many bytes they are, how they go.

All of it blocks. They lie in ``root/.pulling/<owner>/<model>/``; see :mod:`llmlb.node.store.installed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from llmlb.bus.errors import Conflict, PullFailed
from llmlb.bus.hub_plan import Plan
from llmlb.node.pull.partial import Partial, disk_error
from llmlb.node.store.describe import describe_gguf, describe_safetensors
from llmlb.node.store.gguf import read_gguf
from llmlb.node.store.local import why_unusable

_PART = ".part"
_BLOCK_BYTES = 512
"""Unit of ``st_blocks``."""


def check_staged(plan: Plan, staged: Path) -> None:
    """Raises PullFailed when a file is missing, has another size, or the node could not list the model.

    Described as it will be once installed: what fails there would be a broken model, found out after the files moved.
    """
    for file in plan.files:
        try:
            size = (staged / file.local).stat().st_size
        except OSError as error:
            raise PullFailed(f"{file.local} of {plan.wanted.repo} is not there any more") from error
        if size != file.size:
            raise PullFailed(f"{file.local} of {plan.wanted.repo} has {size} bytes instead of {file.size}")
    try:
        _describe(plan, staged)
    except Exception as error:  # the top of a check: the files are a stranger's, and may hold anything
        raise PullFailed(f"{plan.wanted.name} can't be used: {why_unusable(error)}", detail=repr(error)) from error


def _describe(plan: Plan, staged: Path) -> None:
    """Raises whatever comes of files that nobody foresaw."""
    paths = [staged / file.local for file in plan.files]
    if plan.format == "GGUF":
        shards = [path for path in paths if "mmproj" not in path.name.lower()]
        describe_gguf(plan.wanted.repo, shards, None, [read_gguf(shard) for shard in shards])
        return
    weights = [path for path in paths if path.suffix == ".safetensors"]
    describe_safetensors(plan.wanted.repo, staged, weights, paths)


def on_disk(file: Path) -> int:
    """Bytes that a file takes there; 0 when it is gone meanwhile: a download ends by renaming its partial file."""
    with contextlib.suppress(OSError):
        return file.stat().st_blocks * _BLOCK_BYTES
    return 0


def drop_files(staged: Path, names: Collection[str] | None) -> int:
    """Remove these files of a pull (None: all that is there), whole or partial. Returns the bytes that are free again.

    Raises Conflict when one of them is being downloaded, after the others are gone; OutOfDisk, PullFailed.
    """
    freed, busy = 0, None
    for file in sorted(staged.iterdir()) if staged.is_dir() else []:
        if names is not None and _target(file).name not in names:
            continue
        size = on_disk(file)
        try:
            _drop(file)
            freed += size
        except Conflict as error:
            busy = error
        except OSError as error:
            raise disk_error(error, file) from error
    if busy is not None:
        raise busy
    return freed


def _target(file: Path) -> Path:
    """What a staged file becomes when it is whole."""
    return file.with_name(file.name.removesuffix(".map").removesuffix(_PART)) if _is_part(file) else file


def _is_part(file: Path) -> bool:
    return file.name.endswith((_PART, f"{_PART}.map"))


def _drop(file: Path) -> None:
    """Remove a staged file; a partial one only under its lock. Raises Conflict, OSError."""
    if not _is_part(file):
        file.unlink(missing_ok=True)
        return
    partial = Partial(_target(file))
    partial.open()
    try:
        partial.drop()
    finally:
        partial.close()
