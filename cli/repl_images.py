"""Images named in a prompt: found, read, checked.

A name counts when it ends like an image and stands alone: in quotes, with ``\\ `` for blanks, or with blanks as it is
where such a file exists. Source of the rules: what terminals write for a file that is dropped on them, and ollama's
``cmd/interactive.go``.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from llmlb.bus.errors import InvalidRequest
from llmlb.cli.render import printable, size
from llmlb.cli.repl_session import ImageData, Part

_ENDING = re.compile(r"\.(?:png|jpe?g|webp|gif)(?![\w.-]*\w)", re.IGNORECASE)
_BEGIN = re.compile(r"(?:(?<=^)|(?<=[\s(\[<]))(?=[^\s(\[<])", re.MULTILINE)
_LOOKS_LIKE_A_PATH = ("/", "./", "../", "~")
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
BODY_REST = 64 * 1024
"""Bytes of a request that are left for everything but its messages."""
NAME_MAX = 4096
SEARCHED = 32 * 1024
"""Characters at the beginning of a prompt in which names are looked for: what is longer was pasted."""


@dataclass(slots=True)
class Prompt:
    """A prompt whose images are read. ``notes``: lines for the user."""

    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_prompt(text: str, max_body_bytes: int) -> Prompt:
    """Texts and images of a prompt. Raises InvalidRequest for an image that can't be sent, and says why."""
    prompt, rest = Prompt(), 0
    for begin, end, name in found(text):
        path = _path(name)
        if not _exists(path):
            if name.startswith(_LOOKS_LIKE_A_PATH):
                prompt.notes.append(f"There is no file '{printable(name)}': sent as text.")
            continue
        prompt.parts += [text[rest:begin], read_image(path, name, max_body_bytes)]
        prompt.notes.append(f"Added image '{printable(name)}'")
        rest = end
    prompt.parts = [part for part in [*prompt.parts, text[rest:]] if part]
    return prompt


def room(max_body_bytes: int) -> int:
    """Bytes of a request that its messages may take."""
    return max(max_body_bytes - BODY_REST, max_body_bytes // 2)


def begins_with_image(text: str) -> bool:
    """True for ``/my cat.png what is it?``, which is no command."""
    return any(begin == 0 and _exists(_path(name)) for begin, _, name in found(text))


def read_image(path: Path, name: str, max_body_bytes: int) -> ImageData:
    """One file. ``name``: as the user has written it. Raises InvalidRequest."""
    shown = printable(name)
    most = room(max_body_bytes) * 3 // 4
    try:
        # Not blocking: a pipe without a writer would wait for one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise InvalidRequest(f"'{shown}' is not a file, so it can't be an image")
            if about.st_size > most:
                raise InvalidRequest(
                    f"the image '{shown}' is too large: {size(about.st_size)}, and {size(most)} is the most"
                )
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InvalidRequest(f"the image '{shown}' can't be read: {error.strerror or error}") from error
    kind = kind_of(data)
    if kind is None or len(data) > most:
        raise InvalidRequest(f"'{shown}' is not an image: PNG, JPEG, WebP and GIF are")
    return ImageData(kind, data)


def kind_of(data: bytes) -> str | None:
    """The media type of a file by its first bytes."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def found(text: str) -> list[tuple[int, int, str]]:
    """Names of images: where each begins and ends, quotes included, and the name without quotes and backslashes."""
    names: list[tuple[int, int, str]] = []
    at = 0
    text = text[:SEARCHED]
    while _ENDING.search(text, at) is not None and (begin := _BEGIN.search(text, at)) is not None:
        name = _quoted(text, begin.start()) or _bare(text, begin.start())
        if name is None:
            at = begin.start() + 1
            continue
        names.append(name)
        at = name[1]
    return names


def _quoted(text: str, begin: int) -> tuple[int, int, str] | None:
    quote = text[begin]
    if quote not in "\"'":
        return None
    end = text.find(quote, begin + 1, begin + NAME_MAX)
    name = text[begin + 1 : end]
    if end < 0 or "\n" in name or _ENDING.search(name) is None or not _ENDING.search(name, len(name) - 5):
        return None
    return begin, end + 1, name


def _bare(text: str, begin: int) -> tuple[int, int, str] | None:
    """Without blanks, or with those that have a backslash; with blanks as they are if such a file exists."""
    line = text[begin : begin + NAME_MAX].partition("\n")[0]
    word = re.match(r"(?:\\.|[^\s\\\"'])+", line)
    ends = [match.end() for match in _ENDING.finditer(line)]
    for end in ends:
        name = _unescaped(line[:end])
        if (word is not None and end <= word.end()) or (name.startswith(_LOOKS_LIKE_A_PATH) and _exists(_path(name))):
            return begin, begin + end, name
    return None


def _unescaped(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name) if name.startswith("~") else name)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):  # ValueError: a null character
        return False
    return True
