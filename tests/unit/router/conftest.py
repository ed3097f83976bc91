"""Fixtures of several modules here; a test module that has its own of the same name uses that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmlb.router.store import RequestStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a database that is not there yet, nor its folder."""
    return tmp_path / "home" / "router.db"


@pytest.fixture
def store(path: Path) -> Iterator[RequestStore]:
    store = RequestStore(path)
    yield store
    store.close()
