"""How long commands take as whole processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from tests.bench.children import module

RUNS = 20
LIMIT_S = 30.0


def seconds(command: Sequence[str], env: Mapping[str, str], runs: int = RUNS) -> float:
    """The median of so many runs, after one that is not counted. Raises RuntimeError when one fails."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S)
        times.append(time.perf_counter() - began)
        if done.returncode:
            raise RuntimeError(f"{command!r} ended with {done.returncode}: {done.stderr[-500:]!r}")
    return statistics.median(times[1:])


def llmlb(*arguments: str) -> list[str]:
    return module("llmlb", *arguments)


def bare(env: Mapping[str, str], runs: int = RUNS) -> float:
    """Python with typer and rich, doing nothing: the floor under every command."""
    return seconds([sys.executable, "-c", "import typer, rich"], env, runs)


def version(program: str) -> str:
    """Its name and version, as it says them."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=LIMIT_S)
    return " ".join(done.stdout.split()[:2])
