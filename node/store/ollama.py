"""Models in Ollama's store, used in place and never written: ``OLLAMA_MODELS``, ``~/.ollama/models``.

``manifests/<host>/<namespace>/<model>/<tag>`` names blobs, ``blobs/sha256-<hex>``. The model is called
``ollama:<model>`` (tag latest), ``ollama:<model>:<tag>``, ``ollama:<namespace>/<model>…``, ``ollama:<host>/…``.

What can't be used is reported once and left out: missing or short blobs, adapters, models in pieces or Safetensors,
links that lead out of the store. Source: ollama, ``types/model/name.go``, ``server/images.go`` and ``docs/modelfile``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmlb.bus.errors import InvalidRequest, ModelLoadFailed
from llmlb.bus.messages.models import ModelInfo
from llmlb.node.engine.interface import Defaults
from llmlb.node.store import headers
from llmlb.node.store.catalog import StoredModel, check_name
from llmlb.node.store.describe import default_system
from llmlb.node.store.files import read_object, read_text
from llmlb.node.store.go_templates import recognised
from llmlb.node.store.ollama_params import read_params

log = logging.getLogger("llmlb.node.store.ollama")

PREFIX = "ollama:"
HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
MEDIA = "application/vnd.ollama.image."
MAX_MANIFEST_BYTES = 1024 * 1024
MAX_TEXT_BYTES = 1024 * 1024
MAX_MODELS = 10_000
MAX_ENTRIES = 100_000
"""Folder entries looked at in one scan."""

_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_TEXTS = frozenset({"template", "params", "system", "license", "messages", "prompt"})
_REFUSED = {"adapter": "it has an adapter (LoRA), which is not supported", "tensor": "it is in Safetensors form"}


class _Unusable(Exception):
    """Why a model is left out."""


@dataclass(slots=True)
class _Layers:
    """The blobs of a manifest by what they are; texts already read."""

    models: list[Path] = field(default_factory=list)
    projectors: list[Path] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text(self, kind: str) -> str | None:
        return "\n\n".join(self.texts[kind]) if self.texts.get(kind) else None


class OllamaSource:
    """The models of an Ollama store, read-only. No store: no models."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._said: set[str] = set()
        self.problems: dict[str, str] = {}
        """Name → why a model is not listed, as of the last scan."""

    def scan(self) -> Iterable[StoredModel]:
        problems: dict[str, str] = {}
        models = []
        for name, path in self._manifests():
            try:
                check_name(name)
                models.append(self._model(name, path))
            except InvalidRequest:
                problems[name] = "its name can't be asked for"
            except (_Unusable, ModelLoadFailed, ValueError) as error:
                problems[name] = error.message if isinstance(error, ModelLoadFailed) else str(error)
            except OSError as error:
                problems[name] = f"{Path(error.filename or path).name} can't be read: {error.strerror}"
            except Exception as error:  # noqa: BLE001 - told of below; somebody else's store may hold anything
                problems[name] = f"it can't be read: {error!r}"
            if name in problems:
                self._say(name, "left out", problems[name])
        self.problems = problems
        return models

    def state(self) -> object:
        """Of the manifests: Ollama writes one when a model is whole, and removes it first. See catalog.Changing."""
        found: list[tuple[str, int, int]] = []
        for _, path in self._manifests():
            try:
                there = path.stat()
            except OSError:
                continue
            found.append((str(path), there.st_mtime_ns, there.st_size))
        return found

    def _say(self, name: str, event: str, why: str) -> None:
        if (line := f"{name}: {why}") not in self._said:
            self._said.add(line)
            log.warning("ollama_model model=%s what=%r why=%s", name, event, why)

    def _manifests(self) -> Iterator[tuple[str, Path]]:
        """(name, manifest) of every model, by name."""
        found = []
        budget = MAX_ENTRIES
        top = self._root / "manifests"
        folders: list[tuple[Path, tuple[str, ...]]] = [(top, ())] if self._inside(top) else []
        for depth in range(4):
            below: list[tuple[Path, tuple[str, ...]]] = []
            for folder, parts in folders:
                for entry in _entries(folder):
                    budget -= 1
                    path = folder / entry.name
                    wanted = _is_kind(entry, file=depth == 3)
                    if budget < 0 or entry.name.startswith(".") or not wanted:
                        continue
                    if entry.is_symlink() and not self._inside(path):
                        self._say("/".join((*parts, entry.name)), "left out", "a link that leads out of the store")
                        continue
                    below.append((path, (*parts, entry.name)))
            folders = below
        for path, (host, namespace, model, tag) in folders:
            found.append((_name(host, namespace, model, tag), path))
        if budget < 0 or len(found) > MAX_MODELS:
            self._say(str(self._root), "not all read", f"more than {MAX_MODELS} models or {MAX_ENTRIES} entries")
        yield from sorted(found)[:MAX_MODELS]

    def _inside(self, path: Path) -> bool:
        """Whether a path, links followed, is in the store."""
        try:
            return path.resolve(strict=True).is_relative_to(self._root.resolve(strict=True))
        except (OSError, RuntimeError):
            return False

    def _blob(self, layer: dict[str, Any]) -> Path:
        """Raises _Unusable: not there, out of the store, not as large as the manifest says."""
        match = _DIGEST.fullmatch(str(layer.get("digest")))
        if match is None:
            raise _Unusable("a layer without a sha256 digest")
        for name in (f"sha256-{match[1]}", f"sha256:{match[1]}"):
            path = self._root / "blobs" / name
            if not os.path.lexists(path):
                continue
            if not self._inside(path):
                raise _Unusable(f"the blob {match[1][:12]} is a link that leads out of the store")
            size = path.stat().st_size
            if layer.get("size") not in (None, size):
                raise _Unusable(f"the blob {match[1][:12]} has {size} bytes instead of {layer.get('size')}")
            return path
        raise _Unusable(f"the blob {match[1][:12]} is missing")

    def _layers(self, manifest: dict[str, Any]) -> _Layers:
        """Raises _Unusable, OSError, ValueError."""
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
            raise _Unusable("its manifest has no layers")
        out = _Layers()
        for layer in layers:
            kind = str(layer.get("mediaType")).removeprefix(MEDIA)
            if kind in _REFUSED:
                raise _Unusable(_REFUSED[kind])
            if kind == "model":
                out.models.append(self._blob(layer))
            elif kind == "projector":
                out.projectors.append(self._blob(layer))
            elif kind in _TEXTS:
                self._text(layer, kind, out)
            else:
                out.notes.append(f"a layer of type {kind[:80]!r} is not used")
        if not out.models:
            raise _Unusable("its manifest has no model")
        if len(out.models) > 1:
            raise _Unusable("it is in several pieces")
        return out

    def _text(self, layer: dict[str, Any], kind: str, out: _Layers) -> None:
        """A small layer. One that can't be read costs a note, not the model."""
        try:
            path = self._blob(layer)
            if kind == "params":
                out.params |= read_object(path, MAX_TEXT_BYTES)
            else:
                out.texts.setdefault(kind, []).append(read_text(path, MAX_TEXT_BYTES))
        except (_Unusable, OSError, ValueError) as error:
            out.notes.append(f"its {kind} can't be used: {error}")

    def _model(self, name: str, path: Path) -> StoredModel:
        """Raises _Unusable, ModelLoadFailed, OSError, ValueError."""
        layers = self._layers(read_object(path, MAX_MANIFEST_BYTES))
        blob = layers.models[0]
        header = headers.gguf.get(blob)
        defaults = _defaults(layers)
        template = self._template(header.chat_template, layers)
        if layers.texts.get("messages"):
            layers.notes.append("its example conversation is not used")
        projector = layers.projectors[0] if layers.projectors else None
        for note in layers.notes:
            self._say(name, "used with a difference", note)
        info = ModelInfo(
            name=name,
            also=_also(name),
            format="GGUF",
            size_bytes=header.size_bytes + (projector.stat().st_size if projector else 0),
            architecture=header.architecture,
            quantization=header.quantization,
            parameters=header.parameters,
            context_length=header.context_length,
            source="Ollama",
            readonly=True,
            created_at=path.stat().st_mtime,
        )
        return StoredModel(
            info=info,
            path=blob,
            template=template,
            license=layers.text("license") or header.license,
            system=defaults.system if defaults.system is not None else default_system(template),
            metadata={key: str(value) for key, value in header.metadata.items()},
            projector=projector,
            files=(blob, *layers.projectors),
            defaults=defaults,
            notes=tuple(layers.notes),
        )

    @staticmethod
    def _template(own: str | None, layers: _Layers) -> str | None:
        """The GGUF's own template, else the family's of Ollama's; None: the default one."""
        theirs = layers.text("template")
        if own is not None or theirs is None:
            return own
        known = recognised(theirs)
        if known is None:
            layers.notes.append("its Go template is of no known family: the default template (ChatML) is used")
            return None
        layers.notes.append(f"its Go template is replaced by that of the family {known[0]}")
        return known[1]


def _defaults(layers: _Layers) -> Defaults:
    """What its layers say for requests that don't."""
    sampling, stop, context, odd = read_params(layers.params)
    layers.notes += odd
    return Defaults(sampling=sampling, stop=stop, system=layers.text("system"), context_length=context)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_kind(entry: os.DirEntry[str], *, file: bool) -> bool:
    """Whether it is a file, or a folder. A link that leads in a circle is neither."""
    try:
        return entry.is_file() if file else entry.is_dir()
    except OSError:
        return False


def _name(host: str, namespace: str, model: str, tag: str) -> str:
    """As Ollama shows it: what is usual is left out."""
    short = model if namespace == NAMESPACE and host == HOST else f"{namespace}/{model}"
    short = short if host == HOST else f"{host}/{short}"
    return f"{PREFIX}{short}" if tag == TAG else f"{PREFIX}{short}:{tag}"


def _also(name: str) -> tuple[str, ...]:
    rest = name.removeprefix(PREFIX)
    return () if ":" in rest.rpartition("/")[2] else (f"{name}:{TAG}",)
