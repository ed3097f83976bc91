"""What the figures of the engine's benchmark are, their tables, and how they are measured in words."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from tests.bench import machine
from tests.bench.engine_memory import Memory
from tests.bench.engine_scenarios import ALONE, CONTEXT, OURS, SHORT_REQUESTS, SLOTS, THEIRS, Results

MEMORY_LIMIT_MB = 150
GROWTH_LIMIT_MB = 5
"""Noise of allocators; a kilobyte lost by each of 1,000 requests stays below it, ten do not."""


@dataclass(frozen=True)
class Figure:
    """A row of the table. ``bar``: what the median of the pairs' ratios, ours by llama-server's, must reach."""

    name: str
    unit: str
    bar: float | None = None
    more_is_better: bool = False

    def holds(self, ratio: float) -> bool | None:
        if self.bar is None:
            return None
        return ratio >= self.bar if self.more_is_better else ratio <= self.bar


FIGURES = {
    "short": Figure("time to first token, 30-token prompt, idle", "ms", 1.10),
    "cold": Figure("time to first token, 930-token prompt, cold", "ms", 1.05),
    "again": Figure("time to first token, the same prefix again", "ms", 1.15),
    "one": Figure("one stream", "tokens/s", 0.97, more_is_better=True),
    "eight": Figure("8 streams, total", "tokens/s", 1.00, more_is_better=True),
    "gap": Figure("worst gap of 4 running streams when a 2,000-token prompt arrives", "ms", 1.00),
    "next": Figure("time to first token, next turn after 930 tokens", "ms"),
    "one_long": Figure("one stream after a 930-token prompt", "tokens/s", more_is_better=True),
    "late": Figure("time to first token of that 2,000-token prompt", "ms"),
    "cpu": Figure("CPU time a token, 8 streams, all processes", "ms"),
    "cpu_around": Figure("of it outside the engine's process", "ms"),
}


def figures_table(results: Results) -> str:
    """Medians, the median of the pairs' ratios, and what it must reach."""
    lines = [
        "| figure | unit | llmlb | llama-server | ratio | must reach | | pairs from, to | engine alone |",
        "|---|---|---:|---:|---:|---|---|---|---:|",
    ]
    for key, figure in FIGURES.items():
        ours, theirs, alone = (results[key].get(name, []) for name in (OURS, THEIRS, ALONE))
        cells = [figure.name, figure.unit, _median(ours), _median(theirs)]
        if theirs:
            pairs = [a / b for a, b in zip(ours, theirs, strict=True) if b]
            ratio = statistics.median(pairs) if pairs else 0.0
            holds = figure.holds(ratio)
            sign = "≥" if figure.more_is_better else "≤"
            cells += [f"{ratio:.2f}" if ratio else "", f"{sign} {figure.bar:.2f}" if figure.bar else ""]
            cells += ["" if holds is None else "ok" if holds else "**not**"]
            cells += [f"{min(pairs):.2f}, {max(pairs):.2f}" if pairs else ""]
        else:
            cells += ["", "", "", ""]
        cells.append(_median(alone))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _median(values: list[float]) -> str:
    if not values:
        return "-"
    middle = statistics.median(values)
    return f"{middle:.1f}" if middle >= 10 else f"{middle:.2f}"


def memory_table(it: Memory) -> str:
    lines = [
        f"| process | resident, MB | after {SHORT_REQUESTS:,} short requests, MB | growth, MB |",
        "|---|---:|---:|---:|",
    ]
    for name, after in it.after.items():
        before = it.before[name]
        growth = after.rss - before.rss
        cells = (f"{one / machine.MB:.1f}" for one in (before.rss, after.rss, growth))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    worker = it.after["worker"]
    beyond, growth = it.beyond, worker.rss - it.before["worker"].rss
    lines += [
        "",
        f"Of the worker's {worker.rss / machine.MB:.1f} MB, {worker.model / machine.MB:.1f} MB are pages of the model "
        f"file ({it.model / machine.MB:.1f} MB, mapped, so they count as resident) and {it.kv / machine.MB:.1f} MB are "
        f"the KV cache ({SLOTS} x {CONTEXT} tokens). "
        f"What is beyond both: {beyond / machine.MB:.1f} MB, must be ≤ {MEMORY_LIMIT_MB}: "
        f"{'ok' if beyond <= MEMORY_LIMIT_MB * machine.MB else '**not**'}. "
        f"Growth of the worker: {growth / machine.MB:.1f} MB, noise up to {GROWTH_LIMIT_MB}: "
        f"{'ok' if growth <= GROWTH_LIMIT_MB * machine.MB else '**not**'}.",
    ]
    return "\n".join(lines)


METHOD = """\
Both servers are started with the same model file, threads, slots, context and batch, get one warm-up request each and
stay up for the whole run. One is measured at a time, in turn and in changing order, so that slow minutes of the
machine hit both; the share of a core each takes while idle is printed above. Requests go through the whole path: HTTP,
gateway, bus, worker. The client is the same for both: raw sockets on the same machine, a new connection for each
request, bytes kept with their arrival times and parsed when the answer is over. All requests are greedy.

- *Time to first token*: from sending the request to the first event with text. *Cold*: each prompt begins with other
  words, and the server's own count of cached tokens is checked. *Again*: the same prompt right after.
- *One stream*: tokens by the server's usage, from the first to the last event with text. *8 streams*: tokens of all
  by the time from the first request to the last token.
- *Worst gap*: four streams run, a 2,000-token prompt arrives; the longest time between two events of any stream from
  then until that prompt has its first token.
- *Ratio*: the median of the ratios of measurements next to each other, as the machine's speed changes by the minute;
  *pairs*: the lowest and the highest of them. *Engine alone*: the same requests
  handed to llmlb's engine in a process of its own, without HTTP and bus.
- llama-server runs without its second prompt cache in main memory (`--cache-ram 0`), which would cost it time here.
- Memory is resident memory (`/proc/PID/smaps`). Short requests: 4 tokens each, 8 at a time.
"""
