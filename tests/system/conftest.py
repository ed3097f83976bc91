"""One running cluster for the tests that only use it: bus, router and node with the real model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, Process, cluster


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Process]]:
    """``llmlb serve``, ready."""
    with cluster(tmp_path_factory.mktemp("served"), LLMLB_NUM_PARALLEL="4") as it:
        yield it, it.start("serve", home="one").wait_ready()
