"""Models in the node's own store: ``LLMLB_HOME/models/<owner>/<model>/``.

A folder holds a model for each manifest in it, and for each set of files that no manifest names: a GGUF file with its
shards, or ``config.json`` with ``*.safetensors``. ``mmproj*.gguf`` beside a GGUF is its projector.

One model in a folder is ``owner/model``, and answers to ``owner/model:LABEL`` too; of several each is
``owner/model:LABEL``. The label is the quantization that the file's name tells, else its header; of two with the same
one it is the file's stem; a Safetensors model beside GGUFs is ``safetensors``.

A model whose files are not as its manifest says is broken: reported, not listed. A manifest that can't be read is
reported, and its model used as if it had been put there by hand.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmlb.bus.errors import ModelLoadFailed
from llmlb.bus.hub_plan import quant_of
from llmlb.node.store import headers
from llmlb.node.store.catalog import MAX_NAME, StoredModel
from llmlb.node.store.describe import describe_gguf, describe_safetensors
from llmlb.node.store.files import read_object
from llmlb.node.store.manifest import PREFIX, Manifest, read_manifest, safe_label

log = logging.getLogger("llmlb.node.store.local")

REMOVING = ".removing-"
"""Before the name of a list of files that are being removed; they are no model any more."""
SAFETENSORS = "safetensors"
"""Label of a Safetensors model."""
MAX_FILES = 20_000

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.(?:gguf|safetensors)$", re.IGNORECASE)
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.:-]*")


@dataclass(frozen=True, slots=True)
class Broken:
    """What lies in a model folder and is no model. ``entry``: the file it would be seen by; ``names``: what it has."""

    repo: str
    label: str
    why: str
    entry: str
    names: frozenset[str]
    aliases: tuple[str, ...] = ()
    manifest: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.repo}:{self.label}"


@dataclass(slots=True)
class _Folder:
    """One model folder while it is read."""

    path: Path
    name: str
    files: set[str]
    removed: set[str]
    manifests: dict[Path, Manifest] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    """A model before it has its final name."""

    model: StoredModel
    label: str
    stem: str


class LocalSource:
    """The models under a folder. What can't be read is logged once and left out."""

    def __init__(self, root: Path, *, report: bool = True) -> None:
        self._root = root
        self._report = report
        self._said: set[str] = set()
        self._loaded = False
        self.problems: dict[str, str] = {}
        """Name → why a model that should be there is not listed, as of the last scan."""

    def scan(self) -> Iterable[StoredModel]:
        if not self._loaded:
            headers.load(self._root)
            self._loaded = True
        self.problems = {}
        models = [model for folder in self.folders() for model in self.models(folder)]
        headers.save(self._root)
        return models

    def folders(self) -> Iterator[Path]:
        """Every ``owner/model`` folder whose name can be one, in order."""
        for owner in _subfolders(self._root):
            for folder in _subfolders(owner):
                if len(f"{owner.name}/{folder.name}") <= MAX_NAME:
                    yield folder

    def models(self, folder: Path) -> list[StoredModel]:
        """The models of one folder, under their final names."""
        return self.looked_at(folder)[0]

    def looked_at(self, path: Path) -> tuple[list[StoredModel], list[Broken]]:
        """The models of one folder, and what in it should be one."""
        name = f"{path.parent.name}/{path.name}"
        folder = _Folder(path, name, set(), set())
        try:
            found = list(self._found(folder))
        except OSError as error:
            self._say(name, str(error.strerror))
            return [], []
        except Exception as error:  # noqa: BLE001 - told of below; one folder must not take the others with it
            self._say(name, f"it can't be read: {error!r}")
            return [], []
        return _named(found, name), folder.broken

    def _say(self, name: str, why: str) -> None:
        self.problems[name] = why
        if (line := f"{name}: {why}") not in self._said:
            self._said.add(line)
            if self._report:
                log.warning("model_unreadable model=%s error=%s", name, why)

    def _found(self, folder: _Folder) -> Iterator[_Found]:
        path = folder.path
        listed = sorted(each.name for each in path.iterdir())[:MAX_FILES]
        folder.removed = removed = _being_removed(path, listed)
        folder.files = set(listed) - removed
        claimed: set[str] = set()
        for file in listed:
            if file.startswith(PREFIX) and file.endswith(".json"):
                self._take_manifest(folder, path / file)
        for where, manifest in folder.manifests.items():
            claimed |= manifest.names()
            if manifest.entry in removed:
                continue
            if (why := manifest.disagreement(path)) is not None:
                self._say(f"{folder.name}:{manifest.label}", f"broken: {why}; pull it again")
                folder.broken.append(_broken(folder, manifest.entry, why, where, manifest))
            else:
                yield from self._tried(folder, manifest.entry, where, manifest)
        for file in sorted(folder.files - claimed):
            lowered = file.lower()
            if lowered.endswith(".gguf") and "mmproj" not in lowered and "imatrix" not in lowered and _is_first(file):
                yield from self._tried(folder, file, None, None)
        weights = [file for file in folder.files - claimed if file.endswith(".safetensors")]
        if weights and "config.json" in folder.files and not _has_safetensors(folder):
            yield from self._tried(folder, "config.json", None, None)

    def _take_manifest(self, folder: _Folder, path: Path) -> None:
        try:
            folder.manifests[path] = read_manifest(path)
        except (OSError, ValueError) as error:
            self._say(folder.name, f"its manifest {path.name} can't be used: {error}")
            label = path.name.removeprefix(PREFIX).removesuffix(".json")
            folder.broken.append(Broken(folder.name, label, "a damaged manifest", path.name, frozenset(), (), path))

    def _tried(self, folder: _Folder, entry: str, where: Path | None, manifest: Manifest | None) -> Iterator[_Found]:
        try:
            yield _read(folder, entry, where, manifest)
        except Exception as error:  # noqa: BLE001 - told of below; what is in a file must not stop the node
            name = folder.name if entry == "config.json" else f"{folder.name} {entry}"
            why = why_unusable(error)
            self._say(name, why)
            folder.broken.append(_broken(folder, entry, why, where, manifest))


def why_unusable(error: Exception) -> str:
    """What is told of a model that can't be read."""
    if isinstance(error, ModelLoadFailed):
        return error.message
    return str(error) if isinstance(error, OSError | ValueError) else f"it can't be read: {error!r}"


def _broken(folder: _Folder, entry: str, why: str, where: Path | None, manifest: Manifest | None) -> Broken:
    if manifest is not None:
        names = manifest.names()
        return Broken(folder.name, manifest.label, why, entry, names, manifest.aliases, where)
    if entry == "config.json":
        names = frozenset(name for name in folder.files if name.endswith(".safetensors"))
        return Broken(folder.name, SAFETENSORS, why, entry, names | {entry})
    match = _SHARD.search(entry)
    stem = entry[: match.start()] if match else entry.rpartition(".")[0]
    shards = {name for name in folder.files if (found := _SHARD.search(name)) and name[: found.start()] == stem}
    return Broken(folder.name, safe_label(quant_of(entry) or stem), why, entry, frozenset(shards | {entry}))


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = sorted(each for each in folder.iterdir() if _PART.fullmatch(each.name) and ".." not in each.name)
    except OSError:
        return []
    return [each for each in found if _is_folder(each)]


def _is_folder(path: Path) -> bool:
    """False, too, for what can't be looked at: it must not hide the rest."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _being_removed(folder: Path, files: list[str]) -> set[str]:
    """Names of the files whose removal has begun; see :meth:`llmlb.node.store.installed.Store.remove`."""
    gone: set[str] = set()
    for file in files:
        if file.startswith(REMOVING):
            try:
                gone |= {str(each) for each in read_object(folder / file).get("files", ())}
            except (OSError, ValueError, TypeError):
                continue
    return gone


def _has_safetensors(folder: _Folder) -> bool:
    return any(manifest.model_format == "Safetensors" for manifest in folder.manifests.values())


def _is_first(file: str) -> bool:
    match = _SHARD.search(file)
    return match is None or int(match[1]) == 1


def _shards(path: Path) -> list[Path]:
    """All files of a model, its first one given. Raises ModelLoadFailed when one is missing."""
    match = _SHARD.search(path.name)
    if match is None:
        return [path]
    count, tail = int(match[2]), path.name[match.end(2) :]
    files = [path.with_name(f"{path.name[: match.start()]}-{n:05}-of-{count:05}{tail}") for n in range(1, count + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelLoadFailed(f"{path.name}: {len(missing)} of {count} files are missing, first {missing[0]}")
    return files


def _read(folder: _Folder, entry: str, where: Path | None, manifest: Manifest | None) -> _Found:
    """One model, by the file it is seen by. Raises ModelLoadFailed, OSError, ValueError."""
    make = _safetensors if entry == "config.json" else _gguf
    found = make(folder, entry, manifest)
    if manifest is None or where is None:
        return found
    info = found.model.info.model_copy(
        update={
            "source": "HuggingFace",
            "aliases": manifest.aliases,
            "created_at": manifest.created_at or found.model.info.created_at,
            "last_used_at": manifest.last_used_at,
        }
    )
    return replace(found, model=replace(found.model, info=info, manifest=where), label=manifest.label)


def _gguf(folder: _Folder, entry: str, manifest: Manifest | None) -> _Found:
    path = folder.path / entry
    shards = _shards(path)
    mine = folder.files if manifest is None else manifest.names()
    projectors = sorted(name for name in mine if "mmproj" in name.lower() and name.lower().endswith(".gguf"))
    projector = folder.path / projectors[0] if projectors else None
    model = describe_gguf(folder.name, shards, projector, [headers.gguf.get(shard) for shard in shards])
    match = _SHARD.search(entry)
    stem = safe_label(entry[: match.start()] if match else entry.rpartition(".")[0])
    return _Found(model, safe_label(quant_of(entry) or model.info.quantization or stem), stem)


def _safetensors(folder: _Folder, entry: str, manifest: Manifest | None) -> _Found:
    mine = folder.files if manifest is None else manifest.names()
    names = sorted(name for name in mine if name.endswith(".safetensors"))
    for name in names:
        if _is_first(name):
            _shards(folder.path / name)
    files = [folder.path / name for name in sorted(mine)] if manifest is not None else None
    model = describe_safetensors(folder.name, folder.path, [folder.path / name for name in names], files)
    return _Found(model, SAFETENSORS, SAFETENSORS)


def _named(found: list[_Found], name: str) -> list[StoredModel]:
    """The models of a folder with the names by which they are asked for."""
    labels = Counter(each.label.lower() for each in found)
    taken: Counter[str] = Counter()
    out: list[StoredModel] = []
    for each in found:
        label = each.label if labels[each.label.lower()] == 1 else each.stem
        taken[label] += 1
        label = label if taken[label] == 1 else f"{label}-{taken[label]}"
        full = f"{name}:{label}"
        if len(full) > MAX_NAME:
            full = full[:MAX_NAME]
        also = [full] if len(found) == 1 else []
        if label.startswith("UD-") and labels[label.removeprefix("UD-").lower()] == 0:
            also.append(f"{name}:{label.removeprefix('UD-')}")
        info = each.model.info.model_copy(update={"name": name if len(found) == 1 else full, "also": tuple(also)})
        out.append(replace(each.model, info=info))
    return out
