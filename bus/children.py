"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


def die_with_parent() -> None:
    """Called in a child: be told to stop (SIGTERM) when the parent dies, even by kill -9. Linux only, else nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
