"""Further gateway processes of a router on the same port: ``llmlb router serve --workers N``.

The kernel spreads connections over the processes that listen (SO_REUSEPORT). Each has the whole view of the cluster out
of the bus, and a queue of its own; the first one also writes the request history. One that dies is started again; all
of them end with the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import time

from llmlb.bus.children import die_with_parent
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.cli.workers")

RESTART_FIRST_S = 0.5
RESTART_MOST_S = 30.0
STEADY_S = 30.0
"""A process that lived so long is started again without delay."""
GRACE_S = 10.0
"""Beyond the drain timeout, after which a process is killed."""


class Workers:
    """``count`` processes beside this one. ``group`` is what they know each other by."""

    def __init__(self, settings: Settings, count: int, group: str) -> None:
        self._group = group
        self._settings = settings
        self._count = count
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._background = Background("workers")
        self._stopping = False

    def start(self, port: int) -> None:
        """Begin, and watch over them. ``port``: the one this process listens on."""
        for number in range(1, self._count + 1):
            self._background.forever(functools.partial(self._watch, number, port), f"worker.{number}")

    async def _watch(self, number: int, port: int) -> None:
        wait_s = RESTART_FIRST_S
        while not self._stopping:
            began = time.monotonic()
            how = await self._run(number, port)
            if self._stopping:
                return
            wait_s = RESTART_FIRST_S if time.monotonic() - began > STEADY_S else min(2 * wait_s, RESTART_MOST_S)
            log.error("gateway_worker_ended number=%d %s restart_in_s=%.1f", number, how, wait_s)
            await asyncio.sleep(wait_s)

    async def _run(self, number: int, port: int) -> str:
        """One process, from its start to its end; how it ended."""
        try:
            process = await self._spawn(number, port)
        except OSError as error:  # too many processes, no memory: that passes
            return f"error={error!r}"
        self._running[number] = process
        log.info("gateway_worker_started number=%d pid=%d", number, process.pid)
        try:
            return f"code={await process.wait()}"
        finally:
            del self._running[number]

    async def _spawn(self, number: int, port: int) -> asyncio.subprocess.Process:
        settings = self._settings
        command = [sys.executable, "-m", "llmlb", "router", "serve", "--no-embedded-bus"]
        command += ["--worker", f"{self._group}.{number}"]
        command += ["--port", str(port), "--host", settings.router_bind]
        return await asyncio.create_subprocess_exec(
            *command,
            env=child_environ(settings),
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )

    async def stop(self) -> None:
        """Tell them to end, and wait for it. Never raises."""
        self._stopping = True
        processes = list(self._running.values())
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                async with asyncio.timeout(self._settings.drain_timeout_s + GRACE_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await self._background.close()


def child_environ(settings: Settings) -> dict[str, str]:
    """The environment of a child of the same program, which has these settings and starts no bus."""
    return {**_inherited(), **settings.to_environ(), "LLMLB_EMBEDDED_BUS": "false"}


def _inherited() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251  # handed on to a child of the same program
