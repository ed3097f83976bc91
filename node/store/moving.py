"""Installing and removing as steps that can be repeated: each is written down before it begins, and can be ended later.

An installation: ``.install-<label>.json`` in the staging folder. A removal: ``.removing-<label>.json`` in the model's
folder; the files it lists are no model from the moment it is there.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

import orjson

from llmlb.bus.hub_plan import is_beside_weights
from llmlb.node.store.files import make_folders, move, read_object, remove_empty, sync_folder, write_whole
from llmlb.node.store.local import REMOVING
from llmlb.node.store.manifest import Manifest, parse_manifest, remove_manifest, safe_label, write_manifest

JOURNAL = ".install-"


def _listed(folder: Path, prefix: str) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(each for each in folder.iterdir() if each.name.startswith(prefix) and each.suffix == ".json")
    return []


def installs(staged: Path) -> list[Path]:
    """The installations that were begun."""
    return _listed(staged, JOURNAL)


def removals(folder: Path) -> list[Path]:
    """The removals that were begun."""
    return _listed(folder, REMOVING)


def begin_install(staged: Path, manifest: Manifest, moves: Mapping[str, str], gone: Collection[str]) -> Path:
    """Write down what is to be done: ``moves`` staged name → name, ``gone`` files of the old one. Raises OSError."""
    journal = staged / f"{JOURNAL}{manifest.label}.json"
    value = {"manifest": orjson.Fragment(manifest.encoded()), "moves": moves, "gone": list(gone)}
    write_whole(journal, orjson.dumps(value))
    return journal


def end_install(journal: Path, folder: Path) -> None:
    """Do it, or the rest of it. Raises OSError (try again), ValueError (it can't be done: a file is lost)."""
    manifest, moves, gone = _read(journal)
    staged = journal.parent
    make_folders(folder)
    sizes = {file.name: file.size for file in manifest.files}
    lost = [new for old, new in moves.items() if not _is_file(staged / old, folder / new, sizes.get(new))]
    if lost:
        raise ValueError(f"{lost[0]} is lost")
    entry = manifest.entry
    source = next((old for old, new in moves.items() if new == entry), entry)
    if len(moves) > 1 and (staged / source).exists():
        (folder / entry).unlink(missing_ok=True)  # the old one must not be seen with new files
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for old, new in sorted(moves.items(), key=lambda pair: (pair[1] == entry, "mmproj" not in pair[1].lower())):
        if (staged / old).exists():
            if new == entry:
                sync_folder(folder)
            move(staged / old, folder / new)
    sync_folder(folder)
    write_manifest(folder, manifest)
    journal.unlink(missing_ok=True)
    sync_folder(staged)


def _read(journal: Path) -> tuple[Manifest, dict[str, str], list[str]]:
    """The manifest to be, what moves, what goes. Raises OSError, ValueError."""
    value = read_object(journal)
    try:
        moves = {Path(old).name: Path(new).name for old, new in value["moves"].items()}
        return parse_manifest(value["manifest"]), moves, [Path(name).name for name in value["gone"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{journal.name} is damaged: {error!r}") from error


def _is_file(staged: Path, placed: Path, size: int | None) -> bool:
    """Whether a file is where it was, or where it goes."""
    for path in (staged, placed):
        with contextlib.suppress(OSError):
            if path.stat().st_size == size:
                return True
    return False


def beside_weights(folder: Path) -> set[str]:
    """Names of the files that belong to a Safetensors model that somebody put there."""
    names = {each.name for each in folder.iterdir() if each.is_file()}
    return {name for name in names if is_beside_weights(name) or name.endswith(".safetensors.index.json")}


def begin_removal(folder: Path, entry: str, names: Collection[str], manifest: Path | None) -> Path:
    """Write down what goes, which makes it invisible. ``entry``: the file it is seen by. Raises OSError."""
    listed = folder / f"{REMOVING}{safe_label(entry)}.json"
    order = sorted(names, key=lambda name: (name != entry, name))
    value = {"files": order, "manifest": None if manifest is None else manifest.name}
    write_whole(listed, orjson.dumps(value))
    return listed


def end_removal(listed: Path, folder: Path, root: Path) -> int:
    """Do it, or the rest of it. Returns the bytes that are free again. Raises OSError (try again)."""
    freed = 0
    try:
        value = read_object(listed)
    except ValueError:
        listed.unlink()  # written whole or not at all; somebody else made this one
        return 0
    files = value.get("files")
    names = [str(name) for name in files] if isinstance(files, list) else []
    for name in names:
        path = folder / Path(name).name
        with contextlib.suppress(FileNotFoundError):
            there = path.lstat()
            path.unlink()
            freed += there.st_size if there.st_nlink == 1 and stat.S_ISREG(there.st_mode) else 0
    if value.get("manifest") is not None:
        freed += remove_manifest(folder / Path(str(value["manifest"])).name)
    sync_folder(folder)
    listed.unlink(missing_ok=True)
    remove_empty(folder, root)
    return freed
