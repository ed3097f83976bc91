"""Where and when a benchmark ran: the lines above its tables."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version

from tests.bench import machine


def lines(versions: str = "") -> list[str]:
    """Machine, date and versions. ``versions``: of what else was measured."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return [
        f"- Machine: {machine.cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- Versions: llmlb {version('llmlb')} ({commit or 'no commit'}), Python {platform.python_version()}"
        + (f", {versions}" if versions else ""),
    ]


class Measured:
    """A stretch of time, and what else the machine did in it. Begins when it is made."""

    def __init__(self) -> None:
        self._stolen, self._ticks = machine.stolen_and_all()

    def line(self) -> str:
        stolen, ticks = machine.stolen_and_all()
        share = (stolen - self._stolen) / max(1, ticks - self._ticks)
        load = os.getloadavg()[0]
        return (
            f"- CPU time the host took away during the run: {share:.1%}; load of the last minute at its end: {load:.1f}"
        )
