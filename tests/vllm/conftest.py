"""The tiny model of the vLLM tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.make_checkpoint import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))
