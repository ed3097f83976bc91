"""Who a command is: LLMLB_API_KEY, or a user that it logs in for once."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmlb.bus.errors import InvalidRequest, Unauthenticated
from llmlb.bus.settings import Settings

if TYPE_CHECKING:
    from llmlb.cli.client import GatewayClient

AsUser = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="Log in as this user for it; else LLMLB_API_KEY is shown.")
]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read passwords from standard input, a line each; with --as its first.")
]


class Passwords:
    """Passwords of one command: asked for in the terminal, or the lines of standard input in their order."""

    def __init__(self, *, stdin: bool) -> None:
        self._stdin = stdin

    def _line(self) -> str:
        line = sys.stdin.readline().rstrip("\r\n")
        if not line:
            raise InvalidRequest("standard input has no password for this")
        return line

    def _asked(self, prompt: str) -> str:
        if not sys.stdin.isatty():
            raise InvalidRequest("there is no terminal to ask for the password; use --password-stdin")
        return getpass.getpass(prompt, stream=sys.stderr)

    def known(self, name: str) -> str:
        """A password that exists."""
        return self._line() if self._stdin else self._asked(f"Password of {name}: ")

    def new(self, name: str) -> str:
        """A password that is made now: in a terminal it is asked for twice."""
        if self._stdin:
            return self._line()
        first = self._asked(f"New password of {name}: ")
        if self._asked("Again: ") != first:
            raise InvalidRequest("the two passwords differ")
        return first


def client(user: str | None, passwords: Passwords) -> GatewayClient:
    """The router's gateway, as that user if there is one. Raises Unauthenticated, Unreachable."""
    from llmlb.cli.client import GatewayClient

    gateway = GatewayClient(Settings.load(), "router")
    if user is not None:
        try:
            gateway.login(user, passwords.known(user))
        except Unauthenticated as error:
            raise Unauthenticated(f"can't log in as {user}: {error.message}") from error
    return gateway
