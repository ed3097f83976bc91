"""Background tasks that nobody can forget: the only place that makes a loose asyncio task."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from llmlb.bus.errors import ConfigError

log = logging.getLogger("llmlb.bus.tasks")

CANCEL_AGAIN_S = 10.0
AGAIN_FIRST_S = 1.0
AGAIN_MOST_S = 30.0
"""A loop that fails is begun again after so long; doubled each time, until it has run STEADY_S."""
STEADY_S = 60.0


class Background:
    """Tasks with one owner. A task that fails is logged; closing cancels the rest and waits for them.

    Not a TaskGroup: the failure of one task must not end its siblings, nor the owner.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``work`` in the background. Raises RuntimeError after close."""
        if self._closed:
            work.close()
            raise RuntimeError(f"background tasks of {self._name} are closed")
        task = asyncio.create_task(work, name=f"{self._name}.{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def forever(self, make: Callable[[], Coroutine[Any, Any, Any]], name: str) -> asyncio.Task[Any]:
        """As :meth:`start`, for a loop that the rest can't do without: one that fails is begun again, after a while.

        One that returns has ended, and one that needs a person (ConfigError) stays ended.
        """
        return self.start(self._forever(make, name), name)

    async def _forever(self, make: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        wait_s = AGAIN_FIRST_S
        while True:
            began = time.monotonic()
            try:
                await make()
                return
            except ConfigError:
                raise
            except Exception:  # the top of a task: what it does would be missing from here on
                if time.monotonic() - began >= STEADY_S:
                    wait_s = AGAIN_FIRST_S
                log.warning("background_loop_failed task=%s.%s again_s=%.0f", self._name, name, wait_s, exc_info=True)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, AGAIN_MOST_S)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # What a person has to mend needs no traceback.
            trace = None if isinstance(error, ConfigError) else error
            log.error("background_task_failed task=%s error=%s", task.get_name(), error, exc_info=trace)

    async def settle(self) -> None:
        """Wait until all that runs now has ended."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Cancel what runs and wait until it has ended. May be called twice.

        A cancel can get lost: ``asyncio.wait_for`` of Python 3.11 swallows one that comes together with the result
        (gh-86296), and nats-py uses it. So it is repeated for a task that has not ended after 10 s.
        """
        self._closed = True
        tasks = {task for task in self._tasks if task is not asyncio.current_task()}
        while tasks:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)
