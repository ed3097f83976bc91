"""One cluster of simulated nodes for the tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.simcluster import SimCluster, simcluster


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCluster]:
    """A bus, a router and three nodes."""
    with simcluster(tmp_path_factory.mktemp("fleet"), LLMLB_STALL_TIMEOUT="4s") as it:
        it.start_router()
        for number in range(3):
            it.start_node(f"node{number}")
        yield it


@pytest.fixture
def fleet(shared_fleet: SimCluster) -> Iterator[SimCluster]:
    """The shared cluster, all of it at work, however the last test left it.

    Clients of a test end with it: those of one that failed would else ask on for the rest of the run.
    """
    for node in list(shared_fleet.nodes):
        if node.popen.poll() is not None:
            shared_fleet.restart_node(node)
    shared_fleet.wait_ready(shared_fleet.routers[0], *shared_fleet.nodes)
    yield shared_fleet
    shared_fleet.end_traffic()
