"""``python -m tests.soak [minutes] [--seed N]``: two routers, five simulated nodes, a bus, load, and random faults.

Every text is checked. The exit code is 0 when nothing was wrong, silent or stuck, every error has its excuse (the bus
or the client's router was away) and everything that was hurt came back.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import httpx

from tests.soak.chaos import Chaos, Window
from tests.support.cluster import Process
from tests.support.simcluster import SimCluster, simcluster
from tests.support.traffic import Seen, verdicts

NODES = 5
LOAD = ((8, 15), (10, 80), (4, 400))
"""(clients, tokens of their answers): short ones, usual ones, and ones that outlive several faults."""
SAMPLES = 8
"""Columns of the table of memory."""


def excused(seen: Seen, windows: Iterable[Window]) -> bool:
    """Whether the bus, or this client's router, was away while it waited."""
    return any(
        window.began <= seen.ended and seen.began <= window.ended and window.url in ("", seen.url) for window in windows
    )


def resident_mib(pid: int) -> float:
    """Memory of a process; 0 when it is gone. Source: proc(5), VmRSS."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


class Memory:
    """Samples of every process by name, each second, until :meth:`stop`."""

    def __init__(self, cluster: SimCluster, chaos: Chaos) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)
        self._cluster = cluster
        self._chaos = chaos
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            bus = self._cluster.bus.process
            named = {"steady router": self._chaos.steady.popen, "mortal router": self._chaos.mortal.popen, "bus": bus}
            named |= {node.name: node.popen for node in list(self._cluster.nodes)}
            for name, popen in named.items():
                if popen is not None:
                    self.samples[name].append(resident_mib(popen.pid))

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)

    def print(self) -> None:
        print("\nmemory in MiB, from the beginning to the end (a process that started anew begins anew)")
        for name, samples in sorted(self.samples.items()):
            picked = [samples[at * (len(samples) - 1) // (SAMPLES - 1)] for at in range(SAMPLES)] if samples else []
            print(f"  {name:14}" + "".join(f"{value:8.1f}" for value in picked))


def migrations(router: Process) -> int:
    text = httpx.get(f"{router.url}/metrics", timeout=30).text
    return sum(int(float(number)) for number in re.findall(r"llmlb_migrations_total{[^}]*} (\S+)", text))


def report(seen: list[Seen], chaos: Chaos, minutes: float) -> int:
    """Print the table; the exit code."""
    counts = Counter(one.verdict for one in seen)
    errors = [one for one in seen if one.verdict in ("refused", "failed", "broken")]
    unexcused = [one for one in errors if not excused(one, chaos.windows)]
    rows = [
        ("requests", len(seen)),
        ("whole answers", counts["ok"]),
        ("wrong answers", counts["wrong"]),
        ("silent ends", counts["silent"]),
        ("stuck requests", counts["stuck"]),
        ("errors while bus or router was away", len(errors) - len(unexcused)),
        ("errors without an excuse", len(unexcused)),
        ("migrations (steady router)", migrations(chaos.steady)),
        ("did not come back", len(chaos.failures)),
    ]
    print(f"\nsoak of {minutes:g} minutes: " + ", ".join(f"{n} {what}" for what, n in sorted(chaos.done.items())))
    for what, number in rows:
        print(f"  {what:38}{number:8}")
    print("  errors by kind:")
    for what, number in sorted(verdicts(errors).items()):
        without = verdicts(unexcused).get(what, 0)
        print(f"    {what:36}{number:8}   without an excuse {without}")
    for one in unexcused[:5]:
        print(f"  unexcused: {one.verdict} {one.errors} {one.broken} {one.request_id}")
    for failure in chaos.failures:
        print(f"  {failure}")
    bad = counts["wrong"] + counts["silent"] + counts["stuck"] + len(unexcused) + len(chaos.failures)
    return 1 if bad else 0


def soak(root: Path, minutes: float, seed: int) -> int:
    with simcluster(root) as cluster:
        steady, mortal = cluster.start_router("steady"), cluster.start_router("mortal")
        for number in range(NODES):
            cluster.start_node(f"node{number}", "--slots=16", "--tokens-per-s=60")
        cluster.wait_ready(steady, *cluster.nodes)
        cluster.wait_ready(mortal, *cluster.nodes)
        chaos = Chaos(cluster, steady, mortal, random.Random(seed))
        memory = Memory(cluster, chaos)
        traffic = cluster.traffic()
        for clients, tokens in LOAD:
            traffic.keep(clients, tokens)
        try:
            chaos.run(time.monotonic() + minutes * 60)
            seen = traffic.finish()
        finally:
            memory.stop()
        code = report(seen, chaos, minutes)
        memory.print()
        return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="llmlb-soak-"))
    print(f"seed {args.seed}; logs and stores in {root}", flush=True)
    return soak(root, args.minutes, args.seed)


if __name__ == "__main__":
    sys.exit(main())
