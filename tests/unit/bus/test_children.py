from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from llmlb.bus.children import die_with_parent


def test_a_child_loads_nothing_between_fork_and_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have held the loader's lock at the fork; nobody gives it back in the child."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a library is loaded in the child")

    monkeypatch.setattr(ctypes, "CDLL", never)
    script = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    done = subprocess.run([sys.executable, "-c", script], preexec_fn=die_with_parent, capture_output=True, timeout=30)
    assert int(done.stdout) == (15 if sys.platform == "linux" else 0), done.stderr
