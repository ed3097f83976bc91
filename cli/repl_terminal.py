"""The terminal of a session, as a thing that keys and signals happen to: Ctrl+C, typing ahead, going away."""

from __future__ import annotations

import contextlib
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, Self

AGAIN_S = 1.0
"""So long after one Ctrl+C another one only repeats it: what was stopped may clean up."""


class Interrupts:
    """Ctrl+C in a session: raises KeyboardInterrupt, and is remembered until :meth:`clear`.

    Python drops an exception that is raised inside a weak reference's callback or a finalizer, which happens where a
    prompt's event loop is taken apart. Whoever works in a loop therefore asks :meth:`check`, and the "Exception
    ignored in" is not printed.
    """

    def __init__(self) -> None:
        self._at: float | None = None
        self._instead: Callable[[], None] | None = None
        self._before: Any = None
        self._hook = sys.unraisablehook

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # not the main thread
            self._before = signal.signal(signal.SIGINT, self._pressed)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._hook
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def clear(self) -> None:
        """A new turn: what was pressed until now is done with."""
        self._at = None

    @property
    def pressed(self) -> bool:
        """Whether it was in this turn."""
        return self._at is not None

    def check(self) -> None:
        """Raises KeyboardInterrupt when Ctrl+C was pressed in this turn."""
        if self._at is not None:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self, instead: Callable[[], None]) -> Iterator[None]:
        """Within it Ctrl+C calls ``instead`` and is remembered, and raises nothing.

        A prompt that an exception meets while it sets the terminal up or back leaves it in raw mode, and in that no
        later Ctrl+C is a signal.
        """
        self._instead = instead
        try:
            yield
        finally:
            self._instead = None

    def _dropped(self, dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._hook(dropped)

    def _pressed(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        repeated = self._at is not None and now - self._at < AGAIN_S
        self._at = now
        if self._instead is not None:
            self._instead()
        elif not repeated:
            raise KeyboardInterrupt


def no_echo() -> contextlib.AbstractContextManager[None]:
    """What is typed while an answer comes is not mixed into it: the next prompt shows it."""
    return _without(termios.ECHO)


def by_character() -> contextlib.AbstractContextManager[None]:
    """What was typed can be read at once, and Ctrl+C stays a signal.

    In raw mode one that comes just before its end is neither read nor a signal.
    """
    return _without(termios.ECHO | termios.ICANON)


@contextlib.contextmanager
def _without(flags: int) -> Iterator[None]:
    """The terminal without these local modes. Nothing where there is none, or it is gone."""
    before = _modes()
    if before is None:
        yield
        return
    special = [*before[6]]
    special[termios.VMIN], special[termios.VTIME] = 1, 0
    try:
        _set_modes([*before[:3], before[3] & ~flags, *before[4:6], special])
        yield
    finally:
        _set_modes(before)


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """At its end the terminal has the modes that it had, whatever Ctrl+C came in between."""
    before = _modes()
    try:
        yield
    finally:
        if before is not None:
            _set_modes(before)


LEAVE_S = 3.0
"""So long a session may take to end in order. Seen once: the prompt's library waited for ever for a task of its own,
on a terminal that was gone, and the process stayed."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A terminal that goes away and a kill end the session in order, with the terminal as it was, or at once later."""

    leaving = False

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        nonlocal leaving
        leaving = True
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, LEAVE_S)
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        if leaving:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _modes() -> list[Any] | None:
    """Of the terminal on standard input; None where there is none."""
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, OSError, ValueError):
        return None


def _set_modes(modes: list[Any]) -> None:
    with contextlib.suppress(termios.error, OSError, ValueError):
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, modes)
