"""The only map from an error to an exit code: 0 success, 1 general error, 2 connection error."""

from __future__ import annotations

from llmlb.bus.errors import BusDown, LlmlbError

OK = 0
GENERAL = 1
CONNECTION = 2
INTERRUPTED = 130
"""Ctrl+C. Source: POSIX shells, 128 + SIGINT."""

HELP = "Exit codes: 0 success, 1 error, 2 no connection to the server."


class Unreachable(LlmlbError):
    """The gateway that the command talks to does not answer."""

    reason = "unreachable"


def exit_code(error: BaseException) -> int:
    """The exit code of a command that ended with this error."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, Unreachable | BusDown):
        return CONNECTION
    return GENERAL
