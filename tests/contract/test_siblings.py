"""Several processes of one gateway answer alike, whichever is asked. Over a real bus, all in this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from llmlb.router import siblings as siblings_module
from llmlb.router.gateway.metrics import Exposition
from llmlb.router.metrics import Metrics
from llmlb.router.siblings import Siblings
from tests.conftest import MakeBus
from tests.support.records import record

COUNT = 3


class Gateway:
    """Its processes, the first with a history."""

    def __init__(self, make_bus: MakeBus) -> None:
        self._make_bus = make_bus
        self._group = uuid.uuid4().hex
        self.all: list[Siblings] = []
        self.expositions: list[Exposition] = []

    async def add(self) -> None:
        process, bus = len(self.all), await self._make_bus()
        history = SimpleNamespace(last_hour=42, up=True, written=7, skipped=0) if process == 0 else None
        made = Siblings(bus, self._group, process, COUNT, waiting=lambda: (process, 10.0 * process), history=history)
        metrics = Metrics()
        for _ in range(process + 1):
            metrics.request_began("m")
            metrics.request_ended(record(model="m"))
        exposition = Exposition(
            metrics,
            bus,
            lambda: (),
            build=("router", "1"),
            breakers=lambda: {("a" * 32, "m"): "open"},
            history=history,
            siblings=made,
        )
        made.own = exposition.own
        await made.start()
        self.all.append(made)
        self.expositions.append(exposition)


@pytest.fixture
async def gateway(make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    monkeypatch.setattr(siblings_module, "EVERY_S", 0.05)
    monkeypatch.setattr(siblings_module, "ANSWER_S", 5.0)
    made = Gateway(make_bus)
    for _ in range(COUNT):
        await made.add()
    yield made
    for one in made.all:
        await one.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_each_process_knows_the_last_hour_and_all_that_wait(gateway: Gateway) -> None:
    assert [one.last_hour for one in gateway.all] == [42] * COUNT, "known as soon as it has begun"
    await until(lambda: all(one.waiting() == (0 + 1 + 2, 20.0) for one in gateway.all))


async def test_who_died_does_not_wait_for_ever(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    await until(lambda: all(one.waiting()[0] == 3 for one in gateway.all))
    await gateway.all[2].close()
    monkeypatch.setattr(siblings_module, "FRESH_S", 0.5)
    await until(lambda: all(one.waiting() == (1, 10.0) for one in gateway.all[:2]))


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text;version=1.0.0"])
async def test_a_scrape_of_any_process_has_the_series_of_all(gateway: Gateway, accept: str) -> None:
    parse = parse_plain if accept == "text/plain" else parse_openmetrics
    seen = []
    for exposition in gateway.expositions:
        body, _ = await exposition.render(accept)
        families = {family.name: family for family in parse(body.decode())}
        samples = [sample for family in families.values() for sample in family.samples]
        ended = {s.labels["process"]: s.value for s in samples if s.name == "llmlb_requests_total"}
        assert ended == {"0": 1, "1": 2, "2": 3}
        assert [(s.labels, s.value) for s in samples if s.name == "llmlb_history_records_total"] == [
            ({"process": "0"}, 7)
        ]
        assert {s.labels["process"] for s in samples if s.name == "process_start_time_seconds"} == {"0", "1", "2"}
        breakers = [s for s in samples if s.name == "llmlb_breaker_state"]
        assert sorted(s.labels["process"] for s in breakers) == ["0", "1", "2"]
        assert all("process" not in s.labels for s in families["llmlb_nodes"].samples), "of the cluster, not of one"
        keys = [(s.name, frozenset(s.labels.items())) for s in samples]
        assert len(keys) == len(set(keys))
        seen.append({key for key in keys if "process" in dict(key[1])})
    assert seen[0] == seen[1] == seen[2]


async def test_a_process_that_does_not_answer_is_left_out(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings_module, "ANSWER_S", 0.3)
    gateway.all[1].own = None
    body, _ = await gateway.expositions[0].render("text/plain")
    assert b'process="2"' in body
    assert b'process="1"' not in body


async def test_a_gateway_without_a_bus_shows_its_own(gateway: Gateway) -> None:
    await gateway.all[0]._bus.close()
    body, _ = await gateway.expositions[0].render("text/plain")
    assert b'llmlb_bus_connected{process="0"} 0.0' in body
    assert b'process="1"' not in body
