"""The head of an HTTP/1 request, read strictly. Pure. Source: RFC 9110, RFC 9112.

What two programs in a row may read differently is refused: that is how a request is smuggled past a proxy. Sanic's own
parser lets such things through (blanks before a colon, folded lines, bare line feeds, lengths like ``+5`` and ``0x5``,
a missing Host); ``tests/unit/gateway/test_http_head.py`` has the list.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from sanic.exceptions import SanicException

HEAD_MAX = 16 * 1024
"""Bytes of the request line and all headers."""
HEADERS_MAX = 128
TARGET_MAX = 8 * 1024
CHUNK_LINE_MAX = 256
"""Bytes of the line before a chunk; extensions are read over."""
KNOWN_MAX, KNOWN_BYTES_MAX = 512, 2048
"""Heads that are kept, and how long one may be for that: 4 MB in all at the most."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/(\d\.\d)")
_FIELDS = re.compile(rb"(?:\r\n" + _TOKEN + rb":[\t -~\x80-\xff]*)*")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
_ONE_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([1-9][0-9]{0,17})(?=\r\n|\Z)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?")
_METHOD_MAX = 32


class HttpRefused(SanicException):
    """What is wrong with a request as HTTP, for the one who sent it, and the status that says so."""

    quiet = True

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text, status_code=status)
        self.text = text


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A request's head. Names of headers are in lower case, values are Latin-1, as RFC 9110 has them."""

    method: str
    target: str
    """Path and query, or ``*``."""
    version: str
    headers: tuple[tuple[str, str], ...]
    length: int | None
    """Bytes of the body; None: it comes in chunks."""
    keep_alive: bool
    expects: bool
    """The client waits for a "go on" before it sends the body."""
    websocket: bool = False
    """It wants to go on as one."""


def read_head(raw: bytes) -> tuple[Head, int | None]:
    """As :func:`parse_head`, and the length of the body. Raises HttpRefused.

    A client mostly sends the head that it sent before, but for the length: such a head is read once, with a length of 1
    in place of its own (then ``Head.length`` and the header in it are 1 as well). What else there is, a second length
    or a coding beside it, is refused by :func:`parse_head` as ever.
    """
    if len(raw) <= KNOWN_BYTES_MAX:
        found = _ONE_LENGTH.search(raw)
        if found is not None:
            return _known(b"%b%b\r\ncontent-length: 1" % (raw[: found.start()], raw[found.end() :])), int(found[1])
    head = parse_head(raw)
    return head, head.length


def parse_head(raw: bytes) -> Head:
    """The head without the empty line at its end. Raises HttpRefused."""
    line, end, fields = raw.partition(b"\r\n")
    match = _LINE.fullmatch(line)
    if match is None:
        raise HttpRefused(400, "the first line is no HTTP request")
    method, target, version = match[1].decode(), match[2].decode(), match[3].decode()
    if version not in ("1.1", "1.0"):
        raise HttpRefused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    if len(method) > _METHOD_MAX:
        raise HttpRefused(400, "there is no such method")
    if _FIELDS.fullmatch(end + fields) is None:
        raise HttpRefused(400, "a header is malformed")
    lines = fields.decode("latin-1").split("\r\n") if fields else []
    if len(lines) > HEADERS_MAX:
        raise HttpRefused(431, f"there are more than {HEADERS_MAX} headers")
    headers = []
    for one in lines:
        name, _, value = one.partition(":")
        headers.append((name.lower(), value.strip(" \t")))
    length, keep_alive, expects, host = _framing(headers, version)
    target, authority = _target(method, target)
    if authority is not None:
        # RFC 9112, 3.2.2: it wins over the header.
        headers = [field for field in headers if field[0] != "host"]
        headers.append(("host", authority))
    elif host is None and version == "1.1":
        raise HttpRefused(400, "the Host header is missing")
    websocket = next((value for name, value in headers if name == "upgrade"), "").lower() == "websocket"
    return Head(method, target, version, tuple(headers), length, keep_alive, expects, websocket)


def _framing(headers: list[tuple[str, str]], version: str) -> tuple[int | None, bool, bool, str | None]:
    """Length of the body, whether the connection stays, whether "go on" is awaited, and the Host."""
    length: int | None = 0
    framed = expects = False
    host: str | None = None
    connection = ""
    for name, value in headers:
        if name == "content-length" or name == "transfer-encoding":
            if framed:
                raise HttpRefused(400, "Content-Length or Transfer-Encoding is there more than once, or both are")
            framed = True
            length = _length(value) if name == "content-length" else None
            if length is None:
                _check_coding(value, version)
        elif name == "host":
            if host is not None or _HOST.fullmatch(value) is None:
                raise HttpRefused(400, "the Host header must be there once, and be a host")
            host = value
        elif name == "connection":
            connection = f"{connection},{value.lower()}"
        elif name == "expect":
            if value.lower() != "100-continue":
                raise HttpRefused(417, "only Expect: 100-continue can be met")
            expects = version == "1.1"
    options = {option.strip() for option in connection.split(",")} if connection else set()
    keep_alive = "close" not in options and (version == "1.1" or "keep-alive" in options)
    return length, keep_alive, expects and length != 0, host


def _length(value: str) -> int:
    if _LENGTH.fullmatch(value) is None:
        raise HttpRefused(400, "Content-Length is not a number")
    return int(value)


def _check_coding(value: str, version: str) -> None:
    if version != "1.1":
        raise HttpRefused(400, "Transfer-Encoding needs HTTP/1.1")
    if value.lower() != "chunked":
        raise HttpRefused(501, "the only Transfer-Encoding understood is chunked")


def _target(method: str, target: str) -> tuple[str, str | None]:
    """Path and query; and the authority, of a target that has one."""
    if len(target) > TARGET_MAX:
        raise HttpRefused(414, f"the address has more than {TARGET_MAX} characters")
    authority = None
    if target[0] != "/" and (match := _ABSOLUTE.fullmatch(target)) is not None:
        authority, target = match[1], match[2]
        if not authority or _HOST.fullmatch(authority) is None:
            raise HttpRefused(400, "the address has no host")
        target = target if target.startswith("/") else f"/{target}"
    if (target[0] != "/" and (target, method) != ("*", "OPTIONS")) or "#" in target:
        raise HttpRefused(400, "the address is not a path")
    if "%00" in target:
        raise HttpRefused(400, "the address has a NUL in it")
    return target, authority


def chunk_size(line: bytes) -> int:
    """Bytes of the chunk that this line announces. Raises HttpRefused."""
    match = _CHUNK.fullmatch(line)
    if match is None:
        raise HttpRefused(400, "the body's chunks are malformed")
    return int(match[1], 16)


_known = functools.lru_cache(KNOWN_MAX)(parse_head)
