"""Ctrl+C in a session, as a signal: raised once, remembered, and never left to what was there before."""

from __future__ import annotations

import signal
import sys
import weakref

import pytest

from llmlb.cli import repl_terminal
from llmlb.cli.repl_terminal import Interrupts


class Thing:
    """Something that can be referred to weakly."""


def test_a_ctrl_c_that_python_drops_is_found_at_the_next_check_and_nothing_else_is_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    with Interrupts() as interrupts:
        thing = Thing()
        watch = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        assert watch() is None
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.clear()
        interrupts.check()
        other = Thing()
        watch = weakref.ref(other, lambda _: 1 // 0)
        del other
    assert told == [ZeroDivisionError]


def test_pressed_again_while_it_cleans_up_it_is_not_raised_again_until_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(repl_terminal.time, "monotonic", lambda: now)
    with Interrupts():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        now += 0.9
        signal.raise_signal(signal.SIGINT)
        now += 1.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_after_the_session_ctrl_c_does_what_it_did_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) is before
