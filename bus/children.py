"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""

# Found now: a child of a process with threads must not load anything, as a lock may be held that nobody gives back.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_SIGTERM = int(signal.SIGTERM)


def die_with_parent() -> None:
    """Called in a child: be told to stop (SIGTERM) when the parent dies, even by kill -9. Linux only, else nothing."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, _SIGTERM)
