"""The tiny model of the vLLM tests."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.make_checkpoint import make_checkpoint


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """vLLM closes the sockets of an engine that is shut down, and leaves their context to the garbage collector, which
    warns of it: at the end of the run, where a warning is an error, unless it is collected here."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))
