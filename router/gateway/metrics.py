"""What /metrics says: a :class:`~llmlb.router.metrics.Snapshot` and the cluster as it is now, as Prometheus text.

The numbers are taken on the event loop; the text is made in a thread, where it takes 10 µs a line (prometheus-client).
Lines of nodes are written here, not by prometheus-client: 1,000 nodes take 15 ms instead of 90. The two text formats
write a gauge in the same way. Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from llmlb.bus.messages.router import NodeView
from llmlb.router.gateway import metric_names as names
from llmlb.router.gateway.metric_families import Merged, dumped, loaded
from llmlb.router.gateway.metric_names import Family
from llmlb.router.metrics import Histogram, Metrics, Series, Snapshot

BREAKERS_MAX = 2000
BREAKER_VALUES = {"closed": 0, "half-open": 1, "open": 2}
STATES = ("pending", "registering", "online", "offline")
_END = b"# EOF\n"


class BusState(Protocol):
    """``llmlb.bus.connection.Bus``."""

    reconnects: int
    slow_consumers: int

    @property
    def connected(self) -> bool: ...


class HistoryState(Protocol):
    """``llmlb.router.history_process.HistoryProcess``."""

    @property
    def written(self) -> int: ...

    @property
    def skipped(self) -> int: ...

    @property
    def up(self) -> bool: ...


class SiblingProcesses(Protocol):
    """``llmlb.router.siblings.Siblings``."""

    @property
    def process(self) -> int: ...

    async def others(self) -> list[tuple[int, bytes]]: ...


@dataclass(frozen=True, slots=True)
class _Now:
    """Everything of one scrape."""

    requests: Snapshot
    nodes: Sequence[NodeView]
    breakers: Mapping[tuple[str, str], str]
    plain: Sequence[tuple[Family, float]]
    build: tuple[str, str]


class Exposition:
    """The text of one gateway. ``breakers`` gives the state by (node, model); ``history`` is a router's.

    ``siblings``: where several processes are one gateway, whichever is scraped gives the series of all of them.
    """

    def __init__(
        self,
        metrics: Metrics,
        bus: BusState,
        nodes: Callable[[], Sequence[NodeView]],
        *,
        build: tuple[str, str],
        breakers: Callable[[], Mapping[tuple[str, str], str]] = dict,
        history: HistoryState | None = None,
        siblings: SiblingProcesses | None = None,
    ) -> None:
        self._metrics = metrics
        self._bus = bus
        self._nodes = nodes
        self._build = build
        self._breakers = breakers
        self._history = history
        self._siblings = siblings
        self._one_at_a_time = asyncio.Lock()

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Body and content type for an Accept header: Prometheus text, or OpenMetrics where asked for."""
        async with self._one_at_a_time:
            if self._siblings is None:
                return await asyncio.to_thread(_text, self._now(), accept)
            others = await self._siblings.others()
            return await asyncio.to_thread(_text_of_all, self._now(), accept, self._siblings.process, others)

    async def own(self) -> bytes:
        """The families of this process alone, for another one of this gateway that is scraped."""
        return await asyncio.to_thread(lambda now: dumped(_families(now)), self._now())

    def _now(self) -> _Now:
        plain: list[tuple[Family, float]] = [
            (names.BUS_CONNECTED, self._bus.connected),
            (names.BUS_RECONNECTS, self._bus.reconnects),
            (names.SLOW_CONSUMERS, self._bus.slow_consumers),
        ]
        if self._history is not None:
            plain += [
                (names.HISTORY_UP, self._history.up),
                (names.HISTORY_RECORDS, self._history.written),
                (names.HISTORY_SKIPPED, self._history.skipped),
            ]
        return _Now(self._metrics.snapshot(), self._nodes(), self._breakers(), plain, self._build)


def _text(now: _Now, accept: str) -> tuple[bytes, str]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Requests(now))
    ProcessCollector(registry=registry)
    return _encoded(registry, [*_cluster(now), *_breaker_lines(now)], accept)


def _text_of_all(now: _Now, accept: str, process: int, others: Sequence[tuple[int, bytes]]) -> tuple[bytes, str]:
    registry = CollectorRegistry(auto_describe=False)
    theirs = [(number, loaded(families)) for number, families in others]
    registry.register(Merged([(process, _families(now)), *theirs]))
    return _encoded(registry, _cluster(now), accept)


def _families(now: _Now) -> Iterator[Metric]:
    """All that another process of this gateway has otherwise."""
    yield from _Requests(now).collect()
    yield from ProcessCollector(registry=None).collect()
    yield _gauge(names.BREAKER, [(pair, BREAKER_VALUES.get(state, 0)) for pair, state in _worst(now.breakers)])


def _encoded(registry: CollectorRegistry, lines: Iterable[str], accept: str) -> tuple[bytes, str]:
    encode, content_type = choose_encoder(accept)
    body = encode(registry)
    nodes = "".join(lines).encode()
    if body.endswith(_END):
        return body[: -len(_END)] + nodes + _END, content_type
    return body + nodes, content_type


# Requests, through prometheus-client


class _Requests(Collector):
    def __init__(self, now: _Now) -> None:
        self._now = now

    def collect(self) -> Iterator[Metric]:
        requests = self._now.requests
        yield _gauge(names.BUILD, [(self._now.build, 1)])
        yield from _series(requests.series)
        yield _gauge(names.RUNNING, _by_one(requests.running))
        yield _gauge(names.WAITING, _by_one(requests.waiting))
        yield _counter(names.MIGRATIONS, _by_one(requests.migrations))
        yield _counter(names.ATTEMPT_FAILURES, _by_one(requests.attempt_failures))
        for family, value in self._now.plain:
            yield (_gauge if family.type == "gauge" else _counter)(family, [((), value)])


Values = Iterable[tuple[tuple[str, ...], float]]


def _by_one(counts: Mapping[str, int]) -> Values:
    return [((label,), count) for label, count in counts.items()]


def _gauge(family: Family, values: Values) -> Metric:
    metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in values:
        metric.add_metric(labels, float(value))
    return metric


def _counter(family: Family, values: Values) -> Metric:
    metric = CounterMetricFamily(family.name.removesuffix("_total"), family.help, labels=family.labels)
    for labels, value in values:
        metric.add_metric(labels, float(value))
    return metric


def _histogram(family: Family, values: Iterable[tuple[str, Histogram]]) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for label, histogram in values:
        edges = [*map(floatToGoString, histogram.edges), "+Inf"]
        sums = [float(count) for count in accumulate(histogram.counts)]
        metric.add_metric((label,), list(zip(edges, sums, strict=True)), histogram.total)
    return metric


def _series(series: Mapping[str, Series]) -> Iterator[Metric]:
    all_of = sorted(series.items())
    yield _counter(names.REQUESTS, [((m, *how), count) for m, one in all_of for how, count in one.ended.items()])
    yield _counter(names.PROMPT_TOKENS, [((m,), one.prompt_tokens) for m, one in all_of])
    yield _counter(names.GENERATION_TOKENS, [((m,), one.generation_tokens) for m, one in all_of])
    yield _counter(names.CACHED_TOKENS, [((m,), one.cached_tokens) for m, one in all_of])
    yield _histogram(names.FIRST_TOKEN, [(m, one.first_token) for m, one in all_of])
    yield _histogram(names.INTER_TOKEN, [(m, one.inter_token) for m, one in all_of])
    yield _histogram(names.DURATION, [(m, one.whole) for m, one in all_of])
    yield _histogram(names.QUEUE_TIME, [(m, one.queued) for m, one in all_of])


# Nodes, written here


def _cluster(now: _Now) -> Iterator[str]:
    """The lines of nodes and GPUs."""
    nodes = [(f'node="{view.node_id}",name="{_escaped(view.name)}"', view) for view in now.nodes]
    # Readings that are old are left out: an old value drawn as a new one is worse than a gap.
    gpus = [
        (f'{labels},gpu="{number}"', gpu)
        for labels, view in nodes
        if view.state == "online" and not view.metrics_stale
        for number, gpu in enumerate(view.gpus)
    ]
    states = dict.fromkeys(STATES, 0)
    for _, view in nodes:
        states[view.state] = states.get(view.state, 0) + 1
    yield from _lines(names.NODES, ((f'state="{state}"', count) for state, count in states.items()))
    yield from _lines(names.NODE_UP, ((labels, _up(view)) for labels, view in nodes))
    yield from _lines(names.NODE_SLOTS, ((labels, view.slots) for labels, view in nodes))
    yield from _lines(names.NODE_RUNNING, ((labels, view.running) for labels, view in nodes))
    yield from _lines(names.GPU_USED, ((labels, gpu.memory_used_bytes) for labels, gpu in gpus))
    yield from _lines(names.GPU_TOTAL, ((labels, gpu.memory_total_bytes) for labels, gpu in gpus))
    yield from _lines(names.GPU_TEMPERATURE, ((labels, gpu.temperature_c) for labels, gpu in gpus))
    yield from _lines(names.GPU_UTILIZATION, ((labels, _ratio(gpu.utilization_percent)) for labels, gpu in gpus))


def _breaker_lines(now: _Now) -> Iterator[str]:
    return _lines(names.BREAKER, _breakers(now.breakers))


def _lines(family: Family, values: Iterable[tuple[str, float | None]]) -> Iterator[str]:
    name = family.name
    yield f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n"
    for labels, value in values:
        if value is not None:
            yield f"{name}{{{labels}}} {value}\n"


def _breakers(states: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, float]]:
    for (node_id, model), state in _worst(states):
        yield f'node="{_escaped(node_id)}",model="{_escaped(model)}"', BREAKER_VALUES.get(state, 0)


def _worst(states: Mapping[tuple[str, str], str]) -> list[tuple[tuple[str, str], str]]:
    """As many as are shown."""
    return sorted(states.items(), key=lambda item: (-BREAKER_VALUES.get(item[1], 0), item[0]))[:BREAKERS_MAX]


def _up(view: NodeView) -> int:
    return int(view.state == "online" and not view.suspect)


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
