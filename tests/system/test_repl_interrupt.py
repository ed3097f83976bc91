"""Ctrl+C at bad moments of a conversation: at once after Enter, behind the spinner, between two words, twice."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.system.test_repl_look import Scripted, command

READY = re.compile(rb"\x1b\[\?2004h.*>>> ", re.DOTALL)
ENTERED = rb"\x1b\[\?2004l"
WAIT_S = 20.0


@pytest.fixture
def talker() -> Iterator[Scripted]:
    """A gateway whose answers never end."""
    made = Scripted()
    over = threading.Event()

    def talk() -> None:
        while not over.wait(0.005):
            made.comment("prefill")
            made.say("word ")

    threads = [threading.Thread(target=made.server.serve_forever, args=(0.02,)), threading.Thread(target=talk)]
    for thread in threads:
        thread.start()
    yield made
    over.set()
    while not made.pieces.empty():  # where talk waits for room
        made.pieces.get()
    made.server.shutdown()
    for thread in threads:
        thread.join()
    made.server.server_close()


@pytest.fixture
def child(talker: Scripted, tmp_path: Path) -> Iterator[pexpect.spawn[bytes]]:
    """A session at its first prompt."""
    arguments, env = command(talker, tmp_path, TERM="xterm-256color", PYTHONUNBUFFERED="1")
    child: pexpect.spawn[bytes] = pexpect.spawn(
        arguments[0], arguments[1:], env=env, dimensions=(24, 100), timeout=WAIT_S
    )
    child.delaybeforesend = None
    try:
        child.expect(READY)
        yield child
    finally:
        child.close(force=True)


def leave(child: pexpect.spawn[bytes]) -> None:
    child.send(b"/bye\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    assert b"Traceback" not in child.before


def test_ctrl_c_stops_the_answer_at_whatever_moment_it_comes(child: pexpect.spawn[bytes]) -> None:
    for moment in (b"q", ENTERED, ENTERED, ENTERED, b"word", b"word word", ENTERED, b"word", ENTERED, ENTERED):
        child.send(b"q\r")
        child.expect(moment)
        child.sendintr()
        child.expect(READY)
    child.send(b"q\r")
    child.expect(b"word")
    child.send(b"\x03\x03")
    child.expect(READY)
    leave(child)


def test_the_terminal_is_never_left_in_raw_mode_so_that_every_ctrl_c_counts(child: pexpect.spawn[bytes]) -> None:
    for moment in (b"q", ENTERED, b"word") * 15:
        child.send(b"q\r")
        child.expect(moment)
        child.sendintr()
        child.expect(READY)
    leave(child)


def test_a_signal_at_the_prompt_is_as_the_key(child: pexpect.spawn[bytes]) -> None:
    child.send(b"half a question")
    child.expect(b"question")
    os.kill(child.pid, signal.SIGINT)
    child.expect(READY)
    assert b"Use Ctrl" not in child.before
    os.kill(child.pid, signal.SIGINT)
    child.expect(b"Use Ctrl")
    child.expect(READY)
    child.send(b"q\r")
    child.expect(b"word")
    os.kill(child.pid, signal.SIGINT)
    child.expect(READY)
    leave(child)
