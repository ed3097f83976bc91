"""An Ollama store made of given blobs, in the form that Ollama writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MEDIA = "application/vnd.ollama.image."
Layer = dict[str, Any]


class OllamaStore:
    """The folder that ``OLLAMA_MODELS`` names."""

    def __init__(self, root: Path, *, separator: str = "-") -> None:
        """``separator``: between ``sha256`` and the digest, ``:`` in stores of old versions."""
        self.root = root
        self._separator = separator
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    def blob(self, kind: str, data: bytes | str | dict[str, Any] | Path) -> Layer:
        """A layer and its blob; a file is linked, not copied."""
        if isinstance(data, dict):
            data = json.dumps(data)
        if isinstance(data, str):
            data = data.encode()
        content = data.read_bytes() if isinstance(data, Path) else data
        digest = hashlib.sha256(content).hexdigest()
        path = self.root / "blobs" / f"sha256{self._separator}{digest}"
        if not path.exists():
            path.write_bytes(content)
        media = kind if "/" in kind else f"{MEDIA}{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}

    def path_of(self, layer: Layer) -> Path:
        return self.root / "blobs" / str(layer["digest"]).replace(":", self._separator)

    def add(self, name: str, *layers: Layer, host: str = "registry.ollama.ai") -> Path:
        """A manifest; ``name``: ``model``, ``model:tag`` or ``namespace/model:tag``."""
        path, _, tag = name.partition(":")
        namespace, _, model = path.rpartition("/")
        manifest = self.root / "manifests" / host / (namespace or "library") / model / (tag or "latest")
        manifest.parent.mkdir(parents=True, exist_ok=True)
        value = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self.blob("application/vnd.docker.container.image.v1+json", {"model_format": "gguf"}),
            "layers": list(layers),
        }
        manifest.write_text(json.dumps(value))
        return manifest

    def fingerprint(self) -> str:
        """Of every name, size, time and byte in the store."""
        digest = hashlib.sha256()
        for path in sorted(self.root.rglob("*")):
            there = path.lstat()
            digest.update(f"{path} {there.st_mode} {there.st_mtime_ns} {there.st_size}\n".encode())
            if path.is_file() and not path.is_symlink():
                digest.update(path.read_bytes())
        return digest.hexdigest()
