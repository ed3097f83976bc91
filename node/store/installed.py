"""The models that were pulled: where their files lie until they are whole, how they become a model, how they go.

``root/.pulling/<owner>/<model>/`` holds what is being pulled. Installing is one step that a crash can't halve: a
journal, the manifest to be, is written first; then the files move, the one that makes the model visible last; then the
journal becomes the manifest. Removing the same way round: a list of the files makes them invisible, then they go.
Whatever was begun and not ended is finished by :meth:`Store.recover`.

All of it blocks, and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from llmlb.bus.errors import Forbidden, InvalidRequest, PullFailed
from llmlb.bus.hub_plan import Plan
from llmlb.node.pull.partial import disk_error
from llmlb.node.store import moving
from llmlb.node.store.aliases import alias_for
from llmlb.node.store.catalog import StoredModel
from llmlb.node.store.files import in_any_case, make_folders, remove_empty
from llmlb.node.store.local import Broken, LocalSource
from llmlb.node.store.manifest import PREFIX, Manifest, Origin, manifest_path, read_manifest, update_manifest
from llmlb.node.store.placing import label_for, place
from llmlb.node.store.staging import check_staged, drop_files, on_disk

log = logging.getLogger("llmlb.node.store.installed")

STAGING = ".pulling"

_REPO = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Installed:
    """A model that can be used: its name, and the alias that it got."""

    name: str
    alias: str | None


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a pull left behind. ``bytes``: on the disk."""

    repo: str
    bytes: int


class Store:
    """The store under ``root``, which is ``LLMLB_HOME/models``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._local = LocalSource(root, report=False)

    def _folder(self, repo: str) -> Path:
        """Raises InvalidRequest for what is no owner/model."""
        if not _REPO.fullmatch(repo) or ".." in repo:
            raise InvalidRequest(f"'{repo[:80]}' is not owner/model", param="model")
        return in_any_case(self._root, *repo.split("/"))

    def _staged(self, repo: str) -> Path:
        return in_any_case(self._root / STAGING, *self._folder(repo).relative_to(self._root).parts)

    def staging(self, plan: Plan) -> Path:
        """The folder for the files of a pull, made if it is not there. Raises OutOfDisk, PullFailed."""
        folder = self._staged(plan.wanted.repo)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder) from error
        return folder

    # Looking

    def _manifests(self, folder: Path) -> Iterator[Manifest]:
        """The readable manifests of a folder."""
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob(f"{PREFIX}*.json")):
                with contextlib.suppress(OSError, ValueError):
                    yield read_manifest(path)

    def is_installed(self, plan: Plan) -> str | None:
        """The name of the model that these files are: a manifest has the same ones, and they are there in full size."""
        folder = self._folder(plan.wanted.repo)
        with self._lock:
            self._recover(self._staged(plan.wanted.repo))
            for manifest in self._manifests(folder):
                if _same_files(manifest, plan) and manifest.disagreement(folder) is None:
                    return self._name(folder, manifest)
        return None

    def _name(self, folder: Path, manifest: Manifest) -> str | None:
        """The name that a manifest's model has now; None when its files can't be read."""
        where = manifest_path(folder, manifest.label)
        return next((model.info.name for model in self._local.models(folder) if model.manifest == where), None)

    def _where(self, name: str) -> Path | None:
        """The manifest of a model, by its name with or without its label; None when there is none, or several."""
        repo, _, label = name.partition(":")
        folder = self._folder(repo)
        models = [model for model in self._local.models(folder) if model.manifest is not None]
        exact = [model.manifest for model in models if name in (model.info.name, *model.info.also)]
        labelled = [model.manifest for model in models if label and model.manifest == manifest_path(folder, label)]
        found = exact or labelled or ([model.manifest for model in models] if not label else [])
        return found[0] if len(found) == 1 else None

    def origins(self, name: str) -> frozenset[str]:
        """Who wanted a model: ``user``, ``sync``. Empty: put there by hand, or not there."""
        try:
            with self._lock:
                where = self._where(name)
                return frozenset() if where is None else frozenset(read_manifest(where).origins)
        except (OSError, ValueError, InvalidRequest):
            return frozenset()

    def add_origin(self, name: str, origin: Origin) -> None:
        """Somebody else wants it too. Nothing happens to a model without a manifest. Raises OutOfDisk, PullFailed."""
        self._change(name, lambda manifest: manifest.with_origin(origin))

    def remove_origin(self, name: str, origin: Origin) -> None:
        """Somebody does not want it any more. As :meth:`add_origin`."""

        def without(manifest: Manifest) -> Manifest:
            return replace(manifest, origins=tuple(one for one in manifest.origins if one != origin))

        self._change(name, without)

    def _change(self, name: str, change: Callable[[Manifest], Manifest]) -> None:
        with self._lock:
            where = self._where(name)
            if where is None:
                return
            try:
                update_manifest(where, change)
            except OSError as error:
                raise disk_error(error, where) from error
            except ValueError as error:
                raise PullFailed(f"the manifest of {name} can't be changed: {error}") from error

    # Installing

    def install(
        self,
        plan: Plan,
        digests: Mapping[str, str | None],
        *,
        origin: Origin,
        endpoint: str,
        taken_aliases: Collection[str],
    ) -> Installed:
        """Make the staged files of a plan a model. ``digests``: local name → sha256, as verified.

        The same model of an earlier revision is replaced, and keeps its alias. Raises PullFailed (a staged file is
        missing or is no model), Conflict (other files, put there by hand, are in the way), OutOfDisk.
        """
        repo = plan.wanted.repo
        folder, staged = self._folder(repo), self._staged(repo)
        with self._lock:
            self._recover(staged)
            check_staged(plan, staged)
            manifests = list(self._manifests(folder))
            label = label_for(plan, manifests)
            old = next((one for one in manifests if one.label == label), None)
            others = [one for one in manifests if one is not old]
            files = place(plan, digests, folder, label, old, others)
            alias = self._alias(plan, old, taken_aliases)
            manifest = _manifest(plan, label, alias, origin, old)
            manifest = replace(manifest, endpoint=_without_credentials(endpoint), files=tuple(files.values()))
            kept = {name for one in (*others, manifest) for name in one.names()}
            gone = sorted(old.names() - kept) if old is not None else []
            try:
                make_folders(folder)
                journal = moving.begin_install(staged, manifest, {k: v.name for k, v in files.items()}, gone)
                moving.end_install(journal, folder)
            except OSError as error:
                raise disk_error(error, folder) from error
            remove_empty(staged, self._root)
            name = self._name(folder, manifest) or f"{repo}:{label}"
        log.info("model_installed model=%s alias=%s revision=%s", name, alias, plan.revision[:12])
        return Installed(name, alias)

    def _alias(self, plan: Plan, old: Manifest | None, taken: Collection[str]) -> str:
        if old is not None and old.aliases:
            return old.aliases[0]
        ours = [alias for each in self._local.folders() for one in self._manifests(each) for alias in one.aliases]
        return alias_for(plan.wanted.repo, plan.quantization, [*taken, *ours])

    # What was begun and not ended

    def recover(self) -> None:
        """Finish every installation and removal that a crash cut off. What can't be is logged."""
        with self._lock:
            for folder in list(self._local.folders()):
                self._end_removals(folder)
            for staged in self._stagings():
                self._recover(staged)

    def _end_removals(self, folder: Path) -> None:
        for listed in moving.removals(folder):
            try:
                moving.end_removal(listed, folder, self._root)
                log.info("removal_finished folder=%s", folder)
            except OSError as error:
                log.warning("removal_not_finished folder=%s error=%s", folder, error)

    def _stagings(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(each for each in (self._root / STAGING).glob("*/*") if each.is_dir())
        return []

    def _recover(self, staged: Path) -> None:
        folder = self._root / staged.relative_to(self._root / STAGING)
        self._end_removals(folder)
        for journal in moving.installs(staged):
            try:
                moving.end_install(journal, folder)
                log.info("installation_finished folder=%s", folder)
            except (OSError, ValueError) as error:
                log.warning("installation_not_finished folder=%s error=%s", folder, error)
                if isinstance(error, ValueError):
                    journal.unlink(missing_ok=True)
        if staged.is_dir() and not any(staged.iterdir()):
            remove_empty(staged, self._root)

    def leftovers(self) -> list[Leftover]:
        """What unfinished pulls left behind; first finishes what :meth:`recover` can."""
        self.recover()
        found = []
        for staged in self._stagings():
            with contextlib.suppress(OSError):
                sizes = [on_disk(file) for file in staged.iterdir() if file.is_file()]
                if sizes:
                    found.append(Leftover(f"{staged.parent.name}/{staged.name}", sum(sizes)))
        return found

    def purge(self, repo: str, names: Collection[str] | None = None) -> int:
        """Remove what pulls of ``owner/model`` left behind: the files of these names, whole or partial; None: all.

        Returns the bytes that are free again. Raises Conflict when one of them is being downloaded: that one stays.
        """
        staged = self._staged(repo)
        with self._lock:
            self._recover(staged)
            try:
                return drop_files(staged, names)
            finally:
                remove_empty(staged, self._root)

    # Removing

    def remove(self, model: StoredModel) -> int:
        """Delete a model's files. Returns the bytes that are free again.

        A projector stays while another model of the folder uses it. Raises Forbidden for a model that is not ours to
        delete, OutOfDisk or PullFailed when the disk refuses.
        """
        info = model.info
        folder = model.path if info.format == "Safetensors" else model.path.parent
        if info.readonly or info.source not in ("Local", "HuggingFace"):
            raise Forbidden(f"'{info.name}' is read-only: it belongs to {info.source}", param="model")
        with self._lock:
            mine = {file.name for file in model.files}
            used = {
                file.name
                for other in self._local.models(folder)
                if other.path != model.path or other.info.format != info.format
                for file in other.files
            }
            entry = "config.json" if info.format == "Safetensors" else model.path.name
            if info.format == "Safetensors" and model.manifest is None:
                mine |= moving.beside_weights(folder)
            return self._delete(info.name, folder, entry, mine - used, model.manifest)

    def broken(self, name: str) -> Broken | None:
        """What would be the model of a name or alias if it were whole; None when there is none, or several."""
        repo, _, label = name.partition(":")
        with self._lock:
            looks = [(folder, *self._local.looked_at(folder)) for folder in self._local.folders()]
        exact = [one for _, _, found in looks for one in found if name in (one.name, *one.aliases)]
        alone = [
            found[0]
            for folder, models, found in looks
            if not label and not models and len(found) == 1 and f"{folder.parent.name}/{folder.name}" == repo
        ]
        return exact[0] if exact else alone[0] if alone else None

    def remove_broken(self, broken: Broken) -> int:
        """As :meth:`remove`. What a whole model of the folder uses stays."""
        folder = self._folder(broken.repo)
        with self._lock:
            used = {file.name for model in self._local.models(folder) for file in model.files}
            return self._delete(broken.name, folder, broken.entry, broken.names - used, broken.manifest)

    def _delete(self, name: str, folder: Path, entry: str, files: Collection[str], manifest: Path | None) -> int:
        if folder.resolve() != self._root.resolve() / folder.parent.name / folder.name:
            raise Forbidden(f"'{name}' is behind a link to {folder.resolve()}: remove it there", param="model")
        try:
            listed = moving.begin_removal(folder, entry, files, manifest)
            freed = moving.end_removal(listed, folder, self._root)
        except OSError as error:
            raise disk_error(error, folder) from error
        log.info("model_removed model=%s freed_bytes=%d", name, freed)
        return freed


def _manifest(plan: Plan, label: str, alias: str, origin: Origin, old: Manifest | None) -> Manifest:
    """The manifest of a plan, without its files; what it replaces hands on who wanted it, and when it was used."""
    return Manifest(
        label=label,
        model_format=plan.format,
        quantization=plan.quantization,
        endpoint="",
        repo=plan.wanted.repo,
        revision=plan.revision,
        files=(),
        aliases=(alias,),
        origins=(origin,) if old is None else old.with_origin(origin).origins,
        created_at=time.time(),
        last_used_at=None if old is None else old.last_used_at,
    )


def _without_credentials(endpoint: str) -> str:
    url = urlsplit(endpoint)
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _same_files(manifest: Manifest, plan: Plan) -> bool:
    """Whether a manifest has exactly the files of a plan, with the same contents as far as both know them."""
    there = {file.path: file for file in manifest.files}
    if manifest.model_format != plan.format or there.keys() != {file.path for file in plan.files}:
        return False
    for wanted in plan.files:
        file = there[wanted.path]
        known = {each for each in (file.oid, file.sha256) if each}
        if file.size != wanted.size or (wanted.oid and known and wanted.oid not in known):
            return False
    return True
