"""The models of this node, from all its sources, by name and alias."""

from __future__ import annotations

import difflib
import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from llmlb.bus.errors import InvalidRequest, ModelUnknown
from llmlb.bus.messages.models import ModelDetails, ModelInfo
from llmlb.node.engine.interface import Defaults

log = logging.getLogger("llmlb.node.store.catalog")

MAX_NAME = 256
SAVE_AFTER_S = 60.0
"""Times of use are written so long after the first that is not on the disk; a crash loses no more."""
_NAME = re.compile(r"[A-Za-z0-9/_.:-]+")
_TEMPLATE_KEY = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model on the disk. ``template`` None: the file has none; ``metadata``: as the file says it."""

    info: ModelInfo
    path: Path
    template: str | None
    license: str | None
    system: str | None
    metadata: dict[str, str]
    projector: Path | None = None
    """The mmproj file that came with it, for images."""
    files: tuple[Path, ...] = ()
    """All its files, as far as they are known."""
    manifest: Path | None = None
    """Where its manifest is, if it was pulled."""
    defaults: Defaults = field(default_factory=Defaults)
    """What a request gets that does not say it itself."""
    notes: tuple[str, ...] = ()
    """What somebody should know who uses it."""


class Source(Protocol):
    """Where models come from."""

    def scan(self) -> Iterable[StoredModel]:
        """Every model there is now. A broken one is logged and left out."""


class Changing(Source, Protocol):
    """A source that others change while the node runs."""

    def state(self) -> object:
        """Something cheap that is another one when :meth:`scan` may find other models."""


class UsageBook(Protocol):
    """Keeps over restarts when models were used. Called by one thread at a time, never by the event loop's."""

    def load(self) -> Mapping[str, float]:
        """Name → Unix seconds, of the models that say it nowhere else. Never raises."""

    def save(self, used: Iterable[tuple[StoredModel, float]]) -> None:
        """Write these. Never raises: what could not be written is logged."""


def check_name(name: str) -> None:
    """Raises InvalidRequest unless ``name`` can be a model's name."""
    if not name or len(name) > MAX_NAME or ".." in name or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"'{name[:80]}' is not a model name: letters, digits and / _ . : - only, at most {MAX_NAME}", param="model"
        )


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Everything there is, at one time; replaced as a whole, so that readers need no lock."""

    models: dict[str, StoredModel]
    names: dict[str, str]
    """Name or alias → name."""
    lowered: dict[str, str]
    """The same in lower case."""
    several: dict[str, tuple[str, ...]]
    """``owner/model`` → its models, where it alone names none."""


class Catalog:
    """All models. Sources named first win where two have the same name. Safe to use from several threads."""

    def __init__(self, sources: Iterable[Source], usage: UsageBook | None = None) -> None:
        self._sources = list(sources)
        self._usage = usage
        self._scanning = threading.Lock()
        self._states: list[object] = []
        self._shelf = _Shelf({}, {}, {}, {})
        self._used: dict[str, float] = dict(usage.load()) if usage is not None else {}
        self._saved: dict[str, float] = dict(self._used)
        self._timer: threading.Timer | None = None
        self._saving = threading.Lock()
        self._closed = False
        self.inventory = 0
        """Rises whenever the list changes."""
        self.templates: Mapping[str, str] = {}
        """Chat templates in place of those in the files, by the model's name; for whoever loads it from now on."""
        self.rescan()

    def _state(self) -> list[object]:
        return [state() for source in self._sources if (state := getattr(source, "state", None)) is not None]

    def refresh(self) -> None:
        """Look at the disk again if a source says that others changed it. Blocks, as a rule for a millisecond."""
        if self._state() != self._states:
            self.rescan()

    def rescan(self) -> None:
        """Look at the disk again. Blocks; of several threads one after the other."""
        with self._scanning:
            self._states = self._state()  # before: what changes from now on is seen the next time
            models: dict[str, StoredModel] = {}
            for source in self._sources:
                for model in source.scan():
                    used = model.info.last_used_at
                    if used is not None:
                        self._remember(model.info.name, used)
                        model = replace(model, info=model.info.model_copy(update={"last_used_at": None}))
                    models.setdefault(model.info.name, model)
            if models != self._shelf.models:
                self._carry_over(models)
                self._shelf = _arranged(models)
                self.inventory += 1

    def _remember(self, name: str, used: float) -> None:
        """What a manifest says of its model's last use; not older than what is known."""
        if used > self._used.get(name, 0.0):
            self._used[name] = self._saved[name] = used

    def _carry_over(self, models: dict[str, StoredModel]) -> None:
        """A model that changed its name, because its folder got or lost another one, was used when it was used."""
        before = {model.path: name for name, model in self._shelf.models.items() if name not in models}
        for name, model in models.items():
            old = before.get(model.path)
            if old is not None and name not in self._shelf.models and old in self._used:
                self._used[name] = self._used[old]

    def models(self) -> tuple[ModelInfo, ...]:
        """Every model, by name."""
        models = self._shelf.models
        return tuple(self._info(models[name]) for name in sorted(models))

    def _info(self, model: StoredModel) -> ModelInfo:
        used = self._used.get(model.info.name)
        return model.info if used is None else model.info.model_copy(update={"last_used_at": used})

    def resolve(self, name: str) -> StoredModel:
        """The model of a name or alias; when there is none, of one that differs in case only.

        Raises InvalidRequest (not a name), ModelUnknown (with the nearest names, or those to choose from).
        """
        check_name(name)
        shelf = self._shelf
        found = shelf.names.get(name)
        if found is None and name not in shelf.several:
            found = shelf.lowered.get(name.lower())
        if found is None:
            raise ModelUnknown(f"model '{name}' was not found{self._hint(shelf, name)}", param="model")
        model = shelf.models[found]
        return replace(model, info=self._info(model), template=self.templates.get(found, model.template))

    def _hint(self, shelf: _Shelf, name: str) -> str:
        several = shelf.several.get(name) or next(
            (choices for known, choices in shelf.several.items() if known.lower() == name.lower()), ()
        )
        if several:
            return f": there are several of it, name one: {', '.join(several)}"
        for source in self._sources:
            problems: Mapping[str, str] = getattr(source, "problems", {})
            for known, why in problems.items():
                if known == name or known.startswith((f"{name}:", f"{name} ")):
                    return f": {known} is {why}" if why.startswith("broken") else f": {known}: {why}"
        near = difflib.get_close_matches(name, list(shelf.names), n=3, cutoff=0.5)
        return f"; did you mean {' or '.join(near)}?" if near else ""

    def names(self) -> frozenset[str]:
        """Every name and alias that is taken."""
        return frozenset(self._shelf.names) | frozenset(self._shelf.several)

    def details(self, name: str) -> ModelDetails:
        """Everything about one model. Raises as :meth:`resolve`."""
        from llmlb.node.engine.templates import DEFAULT_TEMPLATE

        model = self.resolve(name)
        parameters = {key: value for key, value in sorted(model.metadata.items()) if key != _TEMPLATE_KEY}
        parameters |= model.defaults.shown()
        if model.notes:
            parameters["llmlb.notes"] = "; ".join(model.notes)
        return ModelDetails(
            model=model.info,
            path=str(model.path).encode("utf-8", "replace").decode(),
            license=model.license,
            template=model.template or DEFAULT_TEMPLATE,
            template_source="model" if model.template else "default",
            system=model.system,
            parameters=parameters,
        )

    # When they were used

    def touch(self, name: str) -> None:
        """It was used now. Cheap: it is written later, by a thread of its own."""
        self._used[name] = time.time()
        if self._timer is None and self._usage is not None and not self._closed:
            self._timer = threading.Timer(SAVE_AFTER_S, self._save)
            self._timer.daemon = True
            self._timer.name = "last-used"
            self._timer.start()

    def _save(self) -> None:
        with self._saving:
            self._timer = None
            if self._usage is None:
                return
            models, used, saved = self._shelf.models, dict(self._used), self._saved
            new = {name: at for name, at in used.items() if name in models and at != saved.get(name)}
            if new:
                self._usage.save([(models[name], at) for name, at in sorted(new.items())])
                self._saved = {**saved, **new}

    def close(self) -> None:
        """Write what is not written yet. Blocks shortly; never raises."""
        self._closed = True
        if (timer := self._timer) is not None:
            timer.cancel()
        self._save()


def _arranged(models: dict[str, StoredModel]) -> _Shelf:
    """Models by all their names: of two that claim one, a name goes before an alias, and what comes first wins."""
    names: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for name, model in models.items():
        for other in (*model.info.aliases, *model.info.also):
            names.setdefault(other, name)
        if model.info.source in ("Local", "HuggingFace"):
            repo, mark, _ = name.partition(":")
            if mark:
                several.setdefault(repo, []).append(name)
    names.update({name: name for name in models})
    lowered = {known.lower(): name for known, name in reversed(names.items())}
    return _Shelf(models, names, lowered, {repo: tuple(sorted(found)) for repo, found in several.items()})
