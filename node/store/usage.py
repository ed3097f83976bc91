"""When each model was used, kept over restarts: in its manifest, or for models without one in ``.last-used.json``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import orjson

from llmlb.node.store.catalog import StoredModel
from llmlb.node.store.files import read_object, write_whole
from llmlb.node.store.manifest import Manifest, update_manifest

log = logging.getLogger("llmlb.node.store.usage")

FILE = ".last-used.json"
MAX_NAMES = 10_000


class LastUsed:
    """Implements :class:`llmlb.node.store.catalog.UsageBook`. ``root`` is ``LLMLB_HOME/models``."""

    def __init__(self, root: Path) -> None:
        self._path = root / FILE
        self._times: dict[str, float] = {}
        self._warned = False

    def load(self) -> Mapping[str, float]:
        try:
            times = read_object(self._path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("last_used_unreadable path=%s error=%s", self._path, error)
            return {}
        self._times = {name: float(at) for name, at in times.items() if type(at) in (int, float) and math.isfinite(at)}
        return self._times

    def save(self, used: Iterable[tuple[StoredModel, float]]) -> None:
        others: dict[str, float] = {}
        for model, at in used:
            if model.manifest is None:
                others[model.info.name] = at
            else:
                self._in_manifest(model.manifest, at)
        if others:
            newest = sorted({**self._times, **others}.items(), key=lambda item: item[1])[-MAX_NAMES:]
            self._times = dict(newest)
            self._write()

    def _in_manifest(self, path: Path, at: float) -> None:
        def used(manifest: Manifest) -> Manifest:
            return replace(manifest, last_used_at=at)

        try:
            update_manifest(path, used)
        except FileNotFoundError:
            return  # removed meanwhile
        except (OSError, ValueError) as error:
            self._failed(path, error)

    def _write(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, orjson.dumps(self._times))
            self._warned = False
        except OSError as error:
            self._failed(self._path, error)

    def _failed(self, path: Path, error: Exception) -> None:
        """Said once until it works again."""
        if not self._warned:
            log.warning("last_used_not_written path=%s error=%s", path, error)
        self._warned = True
