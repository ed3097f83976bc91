"""The frame of a serving process: its event loop, the signals that end it, and whether its home can be used."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from llmlb.bus.errors import ConfigError
from llmlb.cli.exit_codes import INTERRUPTED


def usable(home: Path) -> None:
    """Raises ConfigError when the home can't be made or written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        why = f"{error.strerror or error}; set LLMLB_HOME to a folder of yours"
        raise ConfigError(f"the home directory {home} can't be written: {why}") from error


def loop_until_told(main: Callable[[asyncio.Event], Awaitable[int]]) -> int:
    async def run() -> int:
        stop = asyncio.Event()

        def told() -> None:
            if stop.is_set():
                with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
                    sys.stdout.flush()
                os._exit(INTERRUPTED)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, told)
        return await main(stop)

    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        return runner.run(run())


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which comes with Sanic where it exists; else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
