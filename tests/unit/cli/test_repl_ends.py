"""A session whose terminal goes away, or that is told to end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SESSION = """
import time
from llmlb.cli.repl_terminal import ended_by_signals
with ended_by_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        {end}
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize(("end", "code"), [("pass", None), ("time.sleep(60)", -signal.SIGALRM)])
def test_a_session_ends_also_where_something_in_it_does_not(number: signal.Signals, end: str, code: int | None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SESSION.format(end=end)], stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "ready\n"
        session.send_signal(number)
        try:
            assert session.wait(30) == (128 + number if code is None else code)
        finally:
            session.kill()
