"""What is asked of every router: short requests, streams, and 2,000 streams at once."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace

from tests.bench.children import Clients
from tests.bench.load import Order, Result
from tests.bench.report import percentile
from tests.bench.router_targets import DIRECT, FLOOR, Target
from tests.bench.scripted import FAST, SLOW

CONCURRENCY = (1, 16, 64)
STREAMS = (16, 256)
SETTLE_S = 0.3
BEGIN_OVER_S = 0.5
"""Longest answer of those whose first tokens are timed: so the clients are never all at the same place of theirs."""
WARM_UP = 300
"""Requests before anything is measured."""


@dataclass(frozen=True)
class Sizes:
    """How long the measurements are."""

    rounds: int = 3
    seconds: float = 1.0
    """Of a scenario with short requests."""
    first_seconds: float = 5.0
    """Of the one for times to the first token."""
    stream_tokens: int = 200
    many_tokens: int = 40
    held: int = 2000
    held_tokens: int = 7
    """Two seconds each: all have to be open before the first is over."""


QUICK = Sizes(1, 0.6, 1.5, 100, 10, 300, 4)

Values = dict[str, float]


@dataclass
class Scenarios:
    """One run: values by figure and target, one each round."""

    clients: Clients
    sizes: Sizes
    values: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    failed: dict[str, str] = field(default_factory=dict)
    """Answers that were not whole, by target and scenario."""

    def _ask(self, target: Target, order: Order) -> tuple[Result, Values]:
        """The result, and the CPU seconds of each part of the target."""
        time.sleep(SETTLE_S)
        before = target.cpu_s()
        result = self.clients.run(order)
        used = {part: after - before[part] for part, after in target.cpu_s().items()}
        self._count(target, order, result)
        return result, used

    def _count(self, target: Target, order: Order, result: Result) -> None:
        if result.failed:
            what = f"{target.name}, {order.clients} x {order.kind}"
            self.failed[what] = f"{result.failed} of {result.failed + result.requests} answers"
            print(f"{what}: {self.failed[what]} were not whole: {result.error}", file=sys.stderr, flush=True)

    def warm_up(self, target: Target) -> None:
        order = Order("unary", target.port, FAST, 8, rounds=WARM_UP // 8)
        self._count(target, order, self.clients.run(order))
        self.clients.run(Order("stream", target.port, FAST, 8, rounds=1, tokens=20))

    def short(self, target: Target) -> Values:
        """Requests of one token, not streamed."""
        found: Values = {}
        for clients in CONCURRENCY:
            result, used = self._ask(target, Order("unary", target.port, FAST, clients, self.sizes.seconds))
            if not result.requests:
                continue
            found[f"rate.{clients}"] = result.requests / result.seconds
            found[f"p50.{clients}"] = percentile(result.latencies, 0.5)
            found[f"p99.{clients}"] = percentile(result.latencies, 0.99)
            for part, seconds in used.items():
                found[f"cpu.{clients}.{part}"] = 1000 * seconds / result.requests
        return found

    def first_tokens(self, target: Target) -> Values:
        """16 clients with streams of different lengths, which do not all begin at once; and 16 that do."""
        order = Order("stream", target.port, FAST, 16, self.sizes.first_seconds, tokens=10, tokens_most=50)
        result, _ = self._ask(target, replace(order, begin_over_s=BEGIN_OVER_S))
        burst, _ = self._ask(target, replace(order, seconds=0.0, rounds=1))
        if not result.first_tokens or not burst.first_tokens:
            return {}
        found = {f"first.p{share}": percentile(result.first_tokens, share / 100) for share in (50, 99)}
        return found | {"first.burst": max(burst.first_tokens)}

    def chunks(self, target: Target) -> Values:
        found: Values = {}
        for streams, tokens in zip(STREAMS, (self.sizes.stream_tokens, self.sizes.many_tokens), strict=True):
            result, used = self._ask(target, Order("stream", target.port, FAST, streams, rounds=1, tokens=tokens))
            if not result.chunks:
                continue
            found[f"chunks.{streams}"] = result.chunks / result.seconds
            found[f"merged.{streams}"] = result.tokens / result.chunks
            for part, seconds in used.items():
                found[f"chunk.{streams}.{part}"] = 1000 * seconds / result.chunks
        return found

    def held(self, target: Target) -> Values:
        """Memory of each of many open streams: what the gateway grows by, over the streams that are open then."""
        before = target.rss("gateway")
        slow = 3 if target.name == "LiteLLM" else 1  # it takes longer to open them
        order = Order("hold", target.port, SLOW, self.sizes.held, tokens=slow * self.sizes.held_tokens)
        self.clients.order(order)
        opened = self.clients.open()
        grown = target.rss("gateway") - before
        result = self.clients.result()
        self._count(target, order, result)
        found = {"held.open": float(opened), "held.failed": float(result.failed)}
        return found | ({"held.kb": grown / opened / 1000} if opened else {})

    def run(self, targets: list[Target]) -> None:
        """Everything, one target at a time and in changing order; memory first, while the processes are fresh."""
        for target in targets:
            self.warm_up(target)
        for target in targets:
            if target.name not in (DIRECT, FLOOR):
                self._keep("0", target, self.held(target))
        for number in range(self.sizes.rounds):
            for scenario in (self.short, self.first_tokens, self.chunks):
                for target in targets if number % 2 == 0 else reversed(targets):
                    self._keep(f"{number + 1} {scenario.__name__}", target, scenario(target))

    def _keep(self, what: str, target: Target, values: Values) -> None:
        said = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
        print(f"{what} {target.name}: {said}", file=sys.stderr, flush=True)
        for key, value in values.items():
            self.values[key][target.name].append(value)
