from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from llmlb.bus.errors import BY_REASON, BusDown, LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import Unreachable, exit_code
from llmlb.cli.http_wire import Wire


def tree(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.partition(".")[0] in ("http", "ssl", "builtins", "socket"):
            yield from tree(child)


def test_only_a_missing_connection_is_2() -> None:
    assert exit_code(Unreachable("x")) == 2
    assert {cls for cls in BY_REASON.values() if exit_code(cls("x")) == 2} == {BusDown}
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(ValueError()) == 1


@pytest.mark.parametrize(
    "error",
    [
        *tree(http.client.HTTPException),
        *tree(ConnectionError),
        TimeoutError,
        socket.gaierror,
        socket.herror,
        *tree(ssl.SSLError),
        UnicodeError,
    ],
    ids=lambda error: error.__name__,
)
def test_whatever_the_standard_library_raises_becomes_an_error_of_ours(error: type[Exception]) -> None:
    wire = Wire(urlsplit("http://127.0.0.1:32769"), "127.0.0.1:32769", "hint")
    made = error(b"", 5) if error is http.client.IncompleteRead else error.__new__(error)
    made.args = made.args or ("it broke",)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:32769"), wire._errors():
        raise made


@pytest.mark.parametrize(
    ("host", "role", "base", "address"),
    [
        (None, "node", "http://127.0.0.1:32769", "127.0.0.1:32769"),
        (None, "router", "http://127.0.0.1:32768", "127.0.0.1:32768"),
        ("box", "router", "http://box:32768", "box:32768"),
        ("box:1", "node", "http://box:1", "box:1"),
        ("http://box:1/", "node", "http://box:1", "box:1"),
        ("http://box/llm", "node", "http://box:32769/llm", "box:32769"),
        ("https://box", "node", "https://box", "box"),
        ("http://me:pw@box:1", "node", "http://me:pw@box:1", "box:1"),
        ("[::1]:1", "node", "http://[::1]:1", "[::1]:1"),
        ("[::1]", "node", "http://[::1]:32769", "[::1]:32769"),
        ("0.0.0.0", "node", "http://127.0.0.1:32769", "127.0.0.1:32769"),
        ("http://0.0.0.0:7", "node", "http://127.0.0.1:7", "127.0.0.1:7"),
        ("[::]:7", "node", "http://[::1]:7", "[::1]:7"),
        ("http://box:1/v1", "router", "http://box:1", "box:1"),
        ("http://box:1/llm/v1/", "router", "http://box:1/llm", "box:1"),
        ("http://me:pw@box/v0", "router", "http://me:pw@box:32768", "box:32768"),
    ],
)
def test_the_address_is_completed_and_shown_without_a_password(
    host: str | None, role: str, base: str, address: str
) -> None:
    client = GatewayClient(Settings.load({"LLMLB_HOST": host} if host else {}), role)
    assert (client.base, client.address) == (base, address)


def test_a_code_of_the_wire_becomes_its_class() -> None:
    client = GatewayClient(Settings.load({}), "node")
    assert isinstance(client._error({"error": {"message": "m", "code": "bus_unavailable"}}, 503), BusDown)
    assert type(client._error({"error": {"message": "m", "code": "newer"}}, 500)) is LlmlbError
