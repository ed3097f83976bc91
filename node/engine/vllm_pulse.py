"""Whether vLLM lives: it says so after each of its steps, and one step may take minutes. Does not import vllm."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LOOK_S = 1.0
COMPUTING = 0.2
"""Share of a core that its processes take together, if they compute; waiting takes next to none."""
STEP_S = 600.0
"""A step that computes for longer is no sign of life any more."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Pulse:
    """A vLLM stat logger that only notes that the engine stepped: the proof of life behind progress replies.

    On a CPU its processes' computing counts too: a step reads up to :data:`llmlb.node.engine.vllm_setup.CPU_BATCH`
    tokens, which takes minutes there with a large model. On a GPU a step is short, and waiting for it looks busy.
    """

    def __init__(self) -> None:
        self.at = 0.0
        """When it last showed that it lives, of the monotonic clock."""
        self._stepped_at = 0.0
        self._processes: tuple[int, ...] = ()
        self._looked_at = 0.0
        self._used_s = 0.0

    def watch(self, processes: Iterable[int]) -> None:
        """The processes whose computing counts."""
        self._processes = tuple(processes)

    def look(self) -> None:
        """Does it compute? Called now and then, while it has work; mostly it is too early."""
        now = time.monotonic()
        since = now - self._looked_at
        if not self._processes or since < LOOK_S:
            return
        before, self._looked_at, self._used_s = self._used_s, now, sum(map(cpu_seconds, self._processes))
        if since < 3 * LOOK_S and now - self._stepped_at < STEP_S and self._used_s - before >= COMPUTING * since:
            self.at = now

    def begin(self) -> None:
        """It has work again after a pause."""
        self._stepped_at = time.monotonic()

    def record(self, *_: Any, **__: Any) -> None:
        self.at = self._stepped_at = time.monotonic()

    def log_engine_initialized(self) -> None:
        pass

    def log(self) -> None:
        pass

    def record_sleep_state(self, *_: Any, **__: Any) -> None:
        pass


def cpu_seconds(process: int) -> float:
    """CPU time that a process has taken, 0 for one that can't be asked. Source: proc(5), ``stat``. Linux only."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, IndexError, ValueError):
        return 0.0
