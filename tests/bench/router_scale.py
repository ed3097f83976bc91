"""A thousand nodes that beat each second: what they cost the router, and how long its commands take."""

from __future__ import annotations

import contextlib
import statistics
import time
import timeit
from pathlib import Path

from llmlb.router.placement import Ask, place
from tests.bench import commands, machine
from tests.bench.report import Bar, Check
from tests.bench.router_micro import made_table
from tests.bench.router_targets import bus, llmlb_environ, nodes, online, router
from tests.bench.scripted import FAST, SPEEDS
from tests.support.cluster import wait_until

NODES = 1000
JOIN_S = 180.0
SETTLE_S = 10.0
WINDOWS = 3
WINDOW_S = 8.0


def placement_us(count: int) -> float:
    """CPU time of one decision among so many different nodes: the best of some rounds of many."""
    table, ask = made_table(count, equal=False), Ask(prompt_tokens=900, max_tokens=128)
    return min(timeit.repeat(lambda: place(table, ask), number=500, repeat=9, timer=time.thread_time)) / 500 * 1e6


def _share(pid: int, seconds: float) -> float:
    """Of one core, in percent, of a process and what it started."""
    before, began = sum(map(machine.cpu_exact_s, machine.family(pid))), time.perf_counter()
    time.sleep(seconds)
    used = sum(map(machine.cpu_exact_s, machine.family(pid))) - before
    return 100 * used / (time.perf_counter() - began)


def measure(folder: Path, *, quick: bool) -> list[Check]:
    checks = [
        Check(f"placement decision, {NODES:,} nodes", "µs", placement_us(NODES), Bar(50), "CPU time, best of 9"),
    ]
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(bus(folder / "bus"))
        port, pid = stack.enter_context(router(folder, server))
        began = time.monotonic()
        stack.enter_context(nodes(folder, server, f"{FAST}:{NODES}:{SPEEDS[FAST]}"))
        wait_until(lambda: online(port) == NODES, JOIN_S, f"{NODES} nodes are online")
        joined = time.monotonic() - began
        time.sleep(SETTLE_S / 2 if quick else SETTLE_S)
        shares = [_share(pid, WINDOW_S) for _ in range(1 if quick else WINDOWS)]
        memory = sum(map(machine.rss, machine.family(pid))) / machine.MB
        beating = f"{NODES:,} nodes heartbeating each second"
        spread = f"{min(shares):.1f} to {max(shares):.1f}" if len(shares) > 1 else ""
        checks += [
            Check(f"{beating}: router's CPU", "% of a core", statistics.median(shares), Bar(15), spread),
            Check(
                f"{beating}: router's memory", "MB", memory, Bar(200), f"all online {joined:.1f} s after their start"
            ),
        ]
        env = llmlb_environ(folder, server, LLMLB_HOST=f"127.0.0.1:{port}")
        runs = 5 if quick else commands.RUNS
        note = f"median of {runs}; python with typer and rich alone: {number_s(commands.bare(env, runs))}"
        for command in ("nodes", "models", "status"):
            taken = commands.seconds(commands.llmlb("router", command), env, runs)
            checks.append(Check(f"`llmlb router {command}` with them, whole process", "s", taken, Bar(0.3), note))
    return checks


def number_s(value: float) -> str:
    return f"{value:.3f} s"
