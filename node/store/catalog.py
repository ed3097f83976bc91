"""The models of this node, from all its sources, by name and alias."""

from __future__ import annotations

import difflib
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from llmlb.bus.errors import InvalidRequest, ModelUnknown
from llmlb.bus.messages.models import ModelDetails, ModelInfo

MAX_NAME = 256
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


class Source(Protocol):
    """Where models come from."""

    def scan(self) -> Iterable[StoredModel]:
        """Every model there is now. A broken one is logged and left out."""


def check_name(name: str) -> None:
    """Raises InvalidRequest unless ``name`` can be a model's name."""
    if not name or len(name) > MAX_NAME or ".." in name or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"'{name[:80]}' is not a model name: letters, digits and / _ . : - only, at most {MAX_NAME}", param="model"
        )


class Catalog:
    """All models. Sources named first win where two have the same name. Safe to read from several threads."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = list(sources)
        self._lock = threading.Lock()
        self._models: dict[str, StoredModel] = {}
        self._names: dict[str, str] = {}
        self._used: dict[str, float] = {}
        self.inventory = 0
        """Rises whenever the list changes."""
        self.rescan()

    def rescan(self) -> None:
        """Look at the disk again."""
        models: dict[str, StoredModel] = {}
        for source in self._sources:
            for model in source.scan():
                models.setdefault(model.info.name, model)
        names = {alias: name for name, model in models.items() for alias in model.info.aliases}
        names.update({name: name for name in models})
        with self._lock:
            if models != self._models:
                self._models, self._names = models, names
                self.inventory += 1

    def models(self) -> tuple[ModelInfo, ...]:
        """Every model, by name."""
        return tuple(self._info(self._models[name]) for name in sorted(self._models))

    def _info(self, model: StoredModel) -> ModelInfo:
        used = self._used.get(model.info.name)
        return model.info if used is None else model.info.model_copy(update={"last_used_at": used})

    def resolve(self, name: str) -> StoredModel:
        """The model of a name or alias. Raises InvalidRequest (not a name), ModelUnknown (with the nearest names)."""
        check_name(name)
        found = self._names.get(name)
        if found is None:
            near = difflib.get_close_matches(name, list(self._names), n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ModelUnknown(f"model '{name}' was not found{hint}", param="model")
        model = self._models[found]
        return replace(model, info=self._info(model))

    def details(self, name: str) -> ModelDetails:
        """Everything about one model. Raises as :meth:`resolve`."""
        from llmlb.node.engine.templates import DEFAULT_TEMPLATE

        model = self.resolve(name)
        return ModelDetails(
            model=model.info,
            path=str(model.path),
            license=model.license,
            template=model.template or DEFAULT_TEMPLATE,
            template_source="model" if model.template else "default",
            system=model.system,
            parameters={key: value for key, value in sorted(model.metadata.items()) if key != _TEMPLATE_KEY},
        )

    def touch(self, name: str) -> None:
        """It was used now."""
        self._used[name] = time.time()
