"""Server-sent events, the reading side: bytes in, JSON objects out. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from llmlb.bus.errors import LlmlbError


class SseReader:
    """Puts events together from whatever pieces the socket gives. Lines end with LF or CR LF.

    ``on_comment`` gets the text of each comment: a gateway says in them what it waits for.
    """

    def __init__(self, on_comment: Callable[[str], None] | None = None) -> None:
        self._on_comment = on_comment
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[dict[str, Any] | None]:
        """The events completed by ``piece``; None stands for ``[DONE]``. Raises LlmlbError for what is not JSON."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b":") and self._on_comment is not None:
                self._on_comment(line[1:].strip().decode("utf-8", "replace"))
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            if line or not self._data:
                continue
            data, self._data = b"\n".join(self._data), []
            if data.strip() == b"[DONE]":
                yield None
                continue
            try:
                event = json.loads(data)
            except ValueError as error:
                raise LlmlbError("the server sent an event that is not JSON") from error
            if isinstance(event, dict):
                yield event
