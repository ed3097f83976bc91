"""What a record keeps of a body or an answer: without images, and without what looks like a secret. Pure.

Bodies are searched as bytes and not parsed a second time: from one rare character to the next, which Python finds far
faster than a regular expression does, and what stands there is then looked at closely. 64 KiB of prose take some
0.1 ms, of code 1, of JSON 2.4; where :mod:`llmlb.router.secret_marks` knows the places, all of them some 0.02. A client
that hides such things from itself (``\\u0064ata:`` for ``data:``) succeeds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from llmlb.router.secret_marks import Marks, SecretMarks, any_of, before_colon

BODY_MAX = 64 * 1024
"""Bytes of a request's body, and characters of an answer, that a record keeps."""
CUT = b"(cut)"
_MARGIN = 4096
"""A secret that begins before BODY_MAX is still seen whole up to so much behind it."""

Span = tuple[int, int]
"""What is cut out: from, to."""

_DATA_HEAD = re.compile(rb"data:[\w.+-]{0,80}(?:\\?/[\w.+-]{1,80})?(?:;[\w=.+-]{1,80}){0,8},")
_DATA_REST = re.compile(rb'(?:[^"\\\s]|\\/)*')
_DATA_LEAST = 32
"""Shorter ones hold no image: the smallest GIF there is has 35 bytes, 48 in base64."""
_FIELD_DATA = re.compile(rb'"data"\s*:\s*"')
_NEAR = 512
"""Behind the type of an image's source, its data begins within so many bytes."""

_KINDS = {
    b"_": (b"sk", b"hf", b"ghp", b"gho", b"ghu", b"ghs", b"ghr", b"github_pat"),
    b"-": (b"sk", b"invite", b"xoxa", b"xoxb", b"xoxo", b"xoxp", b"xoxr", b"xoxs", b"glpat"),
}
"""What keys and codes begin with, by the mark after it: ours, OpenAI's, Anthropic's, and those that are often shown."""
_KEY_REST = re.compile(rb"[_-][A-Za-z0-9_-]{16,}")
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")
_WORD_REST = re.compile(rb"[A-Za-z0-9_-]*")
_LOGIN = re.compile(rb"://[^\s\"'<>/@:\\]{1,256}:[^\s\"'<>/@\\]{1,256}$")
_LOGIN_MAX = 516
_PEM = re.compile(rb'-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:[^"]*?-----END [A-Z ]{0,40}PRIVATE KEY-----|[^"]*)')

_NAMES = (
    *(b"password", b"passwd", b"passphrase", b"secret", b"credential", b"credentials", b"authorization"),
    *(b"api_key", b"api-key", b"apikey", b"private_key", b"privatekey", b"secret_key", b"secretkey", b"access_key"),
    *(b"access_token", b"accesstoken", b"auth_token", b"authtoken", b"refresh_token", b"refreshtoken", b"id_token"),
    *(b"session_token", b"bearer_token", b"api_token", b"csrf_token", b'"token', b'"pwd', b'"pin', b"cookie"),
)
"""What the name of a field that holds a secret ends with; those with a quotation mark are whole names."""
_NAME_MAX = max(map(len, _NAMES)) + 8
_VALUE = re.compile(rb':\s*"((?:[^"\\]|\\.)+)|:\s*([0-9]+)', re.DOTALL)
_INNER_VALUE = re.compile(rb':\s*\\+"((?:[^"\\]|\\\\\\?.)+)|:\s*([0-9]+)', re.DOTALL)
"""The same inside a text that is JSON itself, as the arguments of tools are."""
_HEADERS = (
    (b"authorization", re.compile(rb"(?i):\s*(?:bearer|basic|token|digest)\s+([^\s\"'\\]+)")),
    (b"api-key", re.compile(rb":\s*([A-Za-z0-9._~+/=-]{8,})")),
    (b"cookie", re.compile(rb":\s*([\w!#$%&*+.^|~-]+=[^\"'\\\r\n]+)")),
)


_ASSIGNED = (
    *(b"PASSWORD", b"PASSWD", b"SECRET", b"TOKEN", b"API_KEY", b"ACCESS_KEY", b"SECRET_KEY", b"PRIVATE_KEY"),
    *(mark + name for mark in (b"?", b"&") for name in (b"token", b"key", b"api_key", b"apikey", b"sig", b"signature")),
    *(b"access_token", b"X-Amz-Signature", b"X-Amz-Security-Token", b"X-Goog-Signature"),
)
"""What stands before the ``=`` of a secret: names of environment variables, and parameters of addresses."""
_ASSIGNED_VALUE = re.compile(rb"=(?:\\?[\"'])?([^\s\"'\\&;<>`]{4,})")


def _cases(endings: str) -> tuple[bytes, ...]:
    return tuple(form.encode() for ending in endings.split() for form in (ending, ending.upper()))


_HINTS = {
    b"_": (b"sk", b"hf", b"ghp", b"gho", b"ghu", b"ghs", b"ghr", b"_pat"),
    b"-": _KINDS[b"-"],
    b"J": (b"ey",),
    b"K": (b"PRIVATE ",),
    b"=": _ASSIGNED,
    b":": (b'\\"', b'" ', *_cases('rd" wd" se" et" al" ls" on" ey" en" in" ie" on ey ie')),
}
"""Marks of what may be a secret, and what stands before them then."""
_LEAST = 7
"""Characters of the shortest secret with what it is known by: ``"pin":1``, ``://a:b@``."""
DATA_URL, BASE64, SCHEME = b"data:", b'"base64"', b"://"
_KEY_BEGINS = rb"[A-Za-z0-9_-]{8}"
"""Half of the least that a key has: a longer repetition takes hyperscan long to compile."""
marks = SecretMarks(
    (
        (b"_", 9, any_of(_HINTS[b"_"]) + b"_" + _KEY_BEGINS, True),
        (b"-", 9, any_of(_HINTS[b"-"]) + b"-" + _KEY_BEGINS, True),
        (b"J", 9, b"eyJ" + _KEY_BEGINS, True),
        (b"K", 1, b"PRIVATE K", True),
        (b"=", 1, any_of(_ASSIGNED) + b"=", True),
        (SCHEME, 3, re.escape(SCHEME), True),
        (DATA_URL, 5, re.escape(DATA_URL), True),
        (BASE64, 8, re.escape(BASE64), True),
        *((b":", 1, before_colon(name), False) for name in sorted({*_NAMES, *dict(_HEADERS)})),
    )
)
"""All that the hints and :func:`_secret` find is among what these find: tests/unit/router/test_secret_marks.py."""


def kept_body(body: bytes) -> str:
    """A request's body for its record: images and secrets cut out, at most BODY_MAX bytes."""
    return _kept(body, marks.find(body) if len(body) <= BODY_MAX + _MARGIN else None)


def kept_json(body: bytes) -> str | bytes:
    """The same, of a body that is known to be JSON: the body itself, where nothing is to be cut out of it."""
    known = marks.find(body) if len(body) <= BODY_MAX + _MARGIN else None
    return body if known is marks.nothing and len(body) <= BODY_MAX else _kept(body, known)


def _kept(body: bytes, known: Marks | None) -> str:
    most = BODY_MAX + _MARGIN
    if known is None or known[DATA_URL] or known[BASE64]:
        # Not "in", which first takes what is searched for in bytes for a number: 0.3 µs.
        if body.find(DATA_URL) >= 0:
            body = _without(body, _data_urls(body, most), most)
        if body.find(BASE64) >= 0:
            body = _without(body, _base64(body, most), most)
        body, known = body[:most], None
    return without_secrets(body, known)[:BODY_MAX].decode(errors="replace")


def kept_text(text: str) -> str:
    """An answer for its record: secrets cut out, at most BODY_MAX characters."""
    if len(text) < _LEAST and text.isascii():
        return text
    data = text[: BODY_MAX + _MARGIN].encode(errors="replace")
    return without_secrets(data).decode(errors="replace")[:BODY_MAX]


def without_secrets(data: bytes, known: Marks | None = None) -> bytes:
    """Keys and tokens of known kinds, logins in addresses, and the values of fields and headers with telling names.

    ``known``: what :data:`marks` found in the same bytes, if it was asked already.
    """
    if known is marks.nothing:
        return data
    spans = sorted(_secrets(data, known))
    return _without(data, iter(spans), len(data)) if spans else data


def _without(data: bytes, spans: Iterator[Span], most: int) -> bytes:
    """With CUT instead of each span. Spans come in order; what is behind the first ``most`` bytes may be missing."""
    out: list[bytes] = []
    size = done = 0
    for begin, end in spans:
        if begin < done:  # inside the one before
            begin = done
        if end <= begin:
            continue
        out += (data[done:begin], CUT)
        size += begin - done
        done = end
        if size >= most:
            break
    return b"".join((*out, data[done : done + most]))


# Images


class _Next:
    """Where a byte comes next. Each part of the body is searched once, whatever the client wrote."""

    def __init__(self, body: bytes, byte: bytes) -> None:
        self._body, self._byte = body, byte
        self._at = -1

    def after(self, begin: int) -> int:
        """The first place from ``begin`` on, which never goes back; the end of the body if there is none."""
        if self._at < begin:
            at = self._body.find(self._byte, begin)
            self._at = len(self._body) if at < 0 else at
        return self._at


def _data_urls(body: bytes, most: int) -> Iterator[Span]:
    """The data of ``data:image/png;base64,…``. Its end is mostly that of the text it is in, which is found fast."""
    cut = 0
    quote, space, escape = _Next(body, b'"'), _Next(body, b" "), _Next(body, b"\\")
    at = body.find(b"data:")
    while 0 <= at <= cut + most:
        head, end = _DATA_HEAD.match(body, at), at + 5
        if head is not None:
            begin = head.end()
            end = quote.after(begin)
            if min(space.after(begin), escape.after(begin)) < end and (rest := _DATA_REST.match(body, begin)):
                end = rest.end()
            if end - begin >= _DATA_LEAST:
                cut += end - begin
                yield begin, end
        at = body.find(b"data:", end)


def _base64(body: bytes, most: int) -> Iterator[Span]:
    """The data of an image in Anthropic's form: an object of the type base64."""
    cut, done, at = 0, 0, body.find(b'"base64"')
    close = _Next(body, b"}")
    while at >= 0 and done <= cut + most:
        begin = body.rfind(b"{", done, at)
        done = at + 8
        if begin >= 0 and close.after(begin) > at:
            field = _FIELD_DATA.search(body, begin, at) or _FIELD_DATA.search(body, at, at + _NEAR)
            if field is not None:
                stop = body.find(b'"', field.end())
                stop = len(body) if stop < 0 else stop
                cut += stop - field.end()
                yield field.end(), stop
                done = max(done, stop)
        at = body.find(b'"base64"', done)


# Secrets


def _secrets(data: bytes, known: Marks | None) -> Iterator[Span]:
    known = marks.find(data) if known is None else known
    yield from _logins(data, _places(data, SCHEME) if known is None else known[SCHEME])
    for mark, before in _HINTS.items():
        if known is not None:
            yield from _secrets_at(data, known[mark], before)
            continue
        at = data.find(mark)
        while at >= 0:
            after = at + 1
            if data.endswith(before, 0, at):
                span = _secret(data, at)
                if span is not None:
                    yield span
                after = _after(data, at, span)
            at = data.find(mark, after)


def _secrets_at(data: bytes, places: Iterable[int], before: tuple[bytes, ...]) -> Iterator[Span]:
    """The same, where the places of the mark are known."""
    done = 0
    for at in places:
        if at >= done and data.endswith(before, 0, at):
            span = _secret(data, at)
            if span is not None:
                yield span
            done = _after(data, at, span)


def _after(data: bytes, at: int, span: Span | None) -> int:
    """Where to go on behind a mark that was looked at.

    A word in which one token did not begin has none: to look at each of its marks anew takes as long as it is long.
    """
    if span is not None:
        return max(at + 1, span[1])
    word = _WORD_REST.match(data, at) if data[at : at + 1] == b"J" else None
    return at + 1 if word is None else word.end()


def _places(data: bytes, text: bytes) -> Iterator[int]:
    at = data.find(text)
    while at >= 0:
        yield at
        at = data.find(text, at + len(text))


def _logins(data: bytes, schemes: Iterable[int]) -> Iterator[Span]:
    """``://name:password@``. No part of it holds the mark at its end, so that only the first mark may be that."""
    if data.find(b"@") < 0:
        return
    mark = _Next(data, b"@")
    for begin in schemes:
        at = mark.after(begin + 3)
        if at - begin <= _LOGIN_MAX and at < len(data) and _LOGIN.match(data, begin, at):
            yield begin + 3, at


def _secret(data: bytes, at: int) -> Span | None:
    """What is to be cut out, if the mark at this place is of a secret."""
    mark = data[at : at + 1]
    if mark == b":":
        return _named(data, at)
    if mark == b"=":
        found = _ASSIGNED_VALUE.match(data, at)
        return None if found is None else found.span(1)
    if mark == b"J":
        found = _JWT.match(data, at - 2)
        return None if found is None else found.span()
    if mark == b"K":
        begin = data.rfind(b"-----BEGIN", max(0, at - 64), at)
        found = None if begin < 0 else _PEM.match(data, begin)
        return None if found is None else found.span()
    return _key(data, at, _KINDS[mark])


def _key(data: bytes, at: int, kinds: tuple[bytes, ...]) -> Span | None:
    before = data[max(0, at - 10) : at]
    fitting = [len(kind) for kind in kinds if before.endswith(kind)]
    begin = at - max(fitting, default=0)
    if not fitting or (begin > 0 and data[begin - 1] in _WORD):
        return None
    rest = _KEY_REST.match(data, at)  # not before: in a word of many marks each match is as long as the word
    return None if rest is None else (begin, rest.end())


def _named(data: bytes, at: int) -> Span | None:
    """The value of a field of JSON or of a header, the colon of which is here."""
    before = data[max(0, at - _NAME_MAX) : at].lower().rstrip()
    if before.endswith(b'"'):
        if not before[:-1].rstrip(b"\\").endswith(_NAMES):
            return None
        found = (_INNER_VALUE if before.endswith(b'\\"') else _VALUE).match(data, at)
        return None if found is None else found.span(1 if found[1] is not None else 2)
    for name, form in _HEADERS:
        if before.endswith(name) and (found := form.match(data, at)):
            return found.span(1)
    return None
