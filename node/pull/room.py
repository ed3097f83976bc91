"""Room on the disk for pulls: is there enough before the first byte, and is there some again after it was full."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from llmlb.bus.errors import OutOfDisk
from llmlb.bus.hub_plan import Plan
from llmlb.node.pull.partial import MARGIN_BYTES

WAIT_S = 60.0
POLL_S = 0.5


def free_bytes(folder: Path) -> int:
    """Free on the disk of a folder that exists."""
    return shutil.disk_usage(folder).free


def staged_bytes(plan: Plan, staging: Path) -> list[int]:
    """Bytes of each file of a plan that are on the disk. Blocks."""
    targets = [staging / file.local for file in plan.files]
    found = [max(_on_disk(target), _on_disk(target.with_name(f"{target.name}.part"))) for target in targets]
    return [min(file.size, count) for file, count in zip(plan.files, found, strict=True)]


def _on_disk(path: Path) -> int:
    """Bytes a file takes: a partial file is as long as the whole from its beginning, with holes in it."""
    try:
        stat = path.stat()
    except OSError:
        return 0
    return min(stat.st_size, stat.st_blocks * 512)


class Room:
    """The disk that models are pulled to, and what of its free bytes is promised to running pulls.

    ``wait_s``: how long a pull that has filled the disk waits for something to be freed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        wait_s: float = WAIT_S,
        poll_s: float = POLL_S,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._folder, self._wait_s, self._poll_s, self._free = folder, wait_s, poll_s, free
        self._promised: dict[str, int] = {}

    def promise(self, task_id: str, missing: int) -> None:
        """So many bytes are still to come for a task."""
        self._promised[task_id] = missing

    def release(self, task_id: str) -> None:
        self._promised.pop(task_id, None)

    def check(self, task_id: str, what: str, missing: int) -> None:
        """Promise a task its bytes. Raises OutOfDisk, naming needed and free bytes, when there is no room for them."""
        others = sum(count for other, count in self._promised.items() if other != task_id)
        free = self._free(self._folder)
        if missing > 0 and free - others < missing + min(MARGIN_BYTES, missing):
            promised = f", {others} of them for other pulls that run" if others else ""
            raise OutOfDisk(f"{what} needs {missing} more bytes, and {free} are free in {self._folder}{promised}")
        self.promise(task_id, missing)

    async def wait(self, missing: int, error: OutOfDisk, since: float) -> None:
        """The disk was full. Return when ``missing`` bytes have room again; raises ``error`` when they still have
        none ``wait_s`` after ``since`` (of time.monotonic)."""
        while True:
            await asyncio.sleep(self._poll_s)
            if time.monotonic() - since > self._wait_s:
                raise error
            if self._free(self._folder) >= missing + min(MARGIN_BYTES, missing):
                return
