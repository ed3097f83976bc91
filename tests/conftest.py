"""Fixtures for all tests: one real nats-server a run, and connected buses."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest

from llmlb.bus.connection import Bus
from llmlb.bus.settings import Settings
from tests.support import forks
from tests.support.natsd import NatsServer

# A slow machine is no bug: hypothesis must not fail on time. In CI the same examples each run.
hypothesis.settings.register_profile("llmlb", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("llmlb")

# httpx.get reads all certificates of the machine each time, 25 ms of CPU time: a poll that does nothing else.
# Tests talk plain HTTP; a context that is kept is the same one.
httpx._transports.default.create_ssl_context = functools.cache(httpx._transports.default.create_ssl_context)  # type: ignore[attr-defined]

forks.enabled = True

# A shell ignores Ctrl+C for what it starts in the background; what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# For the processes that tests start: tests/support/site/sitecustomize.py.
SITE = Path(__file__).parent / "support" / "site"
os.environ["PYTHONPATH"] = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])

REAL = ("contract", "faults", "system")
"""Folders of tests with real processes, sockets and clocks."""

MakeBus = Callable[..., Awaitable[Bus]]


LONGEST = (
    "contract/test_same_answer.py",
    "system/test_start_and_join.py",
    "system/test_openapi_fuzz.py",
    "system/test_mixed_load.py",
    "faults/test_worker_faults.py",
    "system/test_workers.py",
    "system/test_openai_client.py",
    "system/test_auth.py",
    "system/test_repl.py",
    "system/test_cli.py",
    "system/test_auth_workers.py",
    "system/test_engine_features.py",
    "system/test_llama_server_behaviours.py",
    "system/test_cli_serve.py",
    "system/test_membership.py",
    "contract/test_embeddings.py",
    "faults/test_real_model_faults.py",
    "system/test_history_routes.py",
    "faults/test_model_hub_cluster.py",
    "faults/test_pull_faults.py",
    "faults/test_embedded_bus.py",
    "faults/test_bus_outage.py",
    "system/test_request_history.py",
    "faults/test_cluster_faults.py",
    "faults/test_random_kills.py",
    "faults/test_hostile_http.py",
    "faults/test_slow_http.py",
    "contract/test_vision.py",
    "contract/test_migration.py",
    "contract/test_dispatch.py",
    "contract/test_membership.py",
    "contract/test_history.py",
)
"""Files that take longest, in that order, before all others: else a worker ends with one of them while the other has
nothing left to do. Found with ``pytest --durations=0``."""


def pytest_configure(config: pytest.Config) -> None:
    """The order is ours: of itself xdist begins with the files that have most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test with real processes that fails is run once more: on a shared machine a whole second can go missing.

    It is not hidden: each such run is listed as RERUN in the summary, and one that is seen there twice is a bug.
    """
    here = Path(__file__).parent
    first = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.relative_to(here).as_posix(), len(first)))
    for item in items:
        if item.path.relative_to(here).parts[0] in REAL:
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=2))


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """What a test writes into the environment for a library (vLLM's settings) must not reach the next one."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The run's nats-server."""
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server.url
    server.stop()


@pytest.fixture
async def make_bus(nats_url: str, tmp_path: Path) -> AsyncIterator[MakeBus]:
    """Connected buses, closed after the test. ``prepare`` gets the bus before it opens."""
    made: list[Bus] = []

    async def make(prepare: Callable[[Bus], None] | None = None, url: str = nats_url, **settings: object) -> Bus:
        bus = Bus(Settings.load({}, bus_url=url, embedded_bus=False, home=tmp_path, **settings), "test")
        made.append(bus)
        if prepare is not None:
            prepare(bus)
        bus.open()
        async with asyncio.timeout(10):
            await bus.wait_up()
        return bus

    yield make
    for bus in made:
        await bus.close()
