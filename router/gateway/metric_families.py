"""Metrics of several processes of one gateway in one answer: each series carries the number of its process.

Not summed here: a process that was started again counts from 0, which Prometheus knows how to add up only where each
process has a series of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample


def dumped(families: Iterable[Metric]) -> bytes:
    """For another process of this version."""
    return orjson.dumps(
        [
            [
                one.name,
                one.documentation,
                one.type,
                [[sample.name, sample.labels, sample.value] for sample in one.samples],
            ]
            for one in families
        ]
    )


def loaded(data: bytes) -> Iterator[Metric]:
    """What :func:`dumped` wrote. Raises ValueError, TypeError for anything else."""
    for name, documentation, kind, samples in orjson.loads(data):
        family = Metric(name, documentation, kind)
        family.samples = [Sample(*sample) for sample in samples]
        yield family


class Merged(Collector):
    """(process, its families) of all of them."""

    def __init__(self, processes: Iterable[tuple[int, Iterable[Metric]]]) -> None:
        self._families: dict[str, Metric] = {}
        for process, families in processes:
            for one in families:
                into = self._families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                into.samples += [
                    sample._replace(labels={**sample.labels, "process": str(process)}) for sample in one.samples
                ]

    def collect(self) -> Iterable[Metric]:
        return self._families.values()
