"""A sign of life while no token comes: one line that turns, and that leaves nothing behind."""

from __future__ import annotations

import itertools
import threading
from typing import TextIO

from llmlb.cli.render import clipped, printable

DELAY_S = 0.25
"""An answer that begins sooner shows no spinner."""
FRAME_S = 0.1
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAMES_ASCII = "|/-\\"


class Spinner:
    """Turns from :meth:`start` to :meth:`stop`, which may be called again and again. One thread, ended by ``stop``.

    ``columns``: of the terminal; the line never wraps. ``label`` may change at any time.
    """

    def __init__(self, out: TextIO, columns: int, *, delay_s: float = DELAY_S) -> None:
        self.label = ""
        self._out = out
        self._columns = columns
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._drawn = False
        self._frames = FRAMES if _shows(out, FRAMES) else FRAMES_ASCII

    def start(self) -> None:
        threading.Thread(target=self._turn, name="spinner", daemon=True).start()

    def stop(self) -> None:
        """The line is empty again and the cursor at its beginning, if anything was drawn."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        with self._lock:
            if self._drawn:
                self._out.write("\r\x1b[K")
                self._out.flush()

    def _turn(self) -> None:
        if self._stopped.wait(self._delay_s):
            return
        for frame in itertools.cycle(self._frames):
            with self._lock:
                if self._stopped.is_set():
                    return
                self._drawn = True
                try:
                    self._out.write(f"\r{clipped(f'{frame} {printable(self.label)}', self._columns - 1)}\x1b[K")
                    self._out.flush()
                except (OSError, ValueError):  # the terminal is gone; who writes the answer will find out
                    return
            if self._stopped.wait(FRAME_S):
                return


def _shows(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
