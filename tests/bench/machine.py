"""What the machine says about itself and about processes (Linux)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import children

MB = 1_000_000


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown CPU"


def stolen_and_all() -> tuple[int, int]:
    """Ticks of all cores that the host took for others, and all ticks, since the start of the machine."""
    ticks = [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def family(pid: int) -> list[int]:
    """A process and everything it started."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def cpu_s(pid: int) -> float:
    """CPU time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Resident:
    """Memory of one process, in bytes."""

    rss: int
    model: int
    """Resident pages of the model file, which is mapped into memory and counts as RSS."""


def resident(pid: int, model: Path | None = None) -> Resident:
    rss = of_model = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = model is not None and line.endswith(str(model))
        elif name == "Rss:":
            size = int(rest.split()[0]) * 1024
            rss += size
            of_model += size if inside else 0
    return Resident(rss, of_model)


def cpu_exact_s(pid: int) -> float:
    """CPU time of the threads a process has now, to the nanosecond; one that ended takes its time with it.

    Ticks of a hundredth of a second where the kernel counts no better. Source: Documentation/scheduler/sched-stats.
    """
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9 if total else cpu_s(pid)


def rss(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
