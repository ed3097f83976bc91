"""Server-sent events, the reading side: bytes in, JSON objects out. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llmlb.bus.errors import LlmlbError


class SseReader:
    """Puts events together from whatever pieces the socket gives. Comments are skipped."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, piece: bytes) -> Iterator[dict[str, Any] | None]:
        """The events completed by ``piece``; None stands for ``[DONE]``. Raises LlmlbError for what is not JSON."""
        self._buffer += piece
        while (at := self._buffer.find(b"\n\n")) >= 0:
            block, self._buffer = self._buffer[:at], self._buffer[at + 2 :]
            data = b"\n".join(line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:"))
            if not data:
                continue
            if data.strip() == b"[DONE]":
                yield None
                continue
            try:
                event = json.loads(data)
            except ValueError as error:
                raise LlmlbError("the server sent an event that is not JSON") from error
            if isinstance(event, dict):
                yield event
