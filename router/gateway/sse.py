"""Server-sent events: framing only. Pure. Source: WHATWG HTML, section "Server-sent events"."""

from __future__ import annotations

from typing import Any

import orjson

CONTENT_TYPE = "text/event-stream; charset=utf-8"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"


def data(payload: Any) -> bytes:
    """One event. JSON has no raw line breaks, so one ``data:`` line is enough."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def event(name: str, payload: Any) -> bytes:
    """One event with a name, for clients that listen by name."""
    return b"event: " + name.encode() + b"\n" + data(payload)


def comment(text: str) -> bytes:
    """A line that clients skip: keeps the connection alive. Line breaks become spaces."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"


class ChunkTemplate:
    """Events that differ in one text only: everything around it is encoded once."""

    _MARK = "\ue000llmlb\ue000"

    def __init__(self, payload: Any, name: str | None = None) -> None:
        """``payload`` holds :attr:`_MARK` once, as a string value. ``name``: of the event, if it has one."""
        whole = data(payload) if name is None else event(name, payload)
        self._before, self._after = whole.split(orjson.dumps(self._MARK), 1)

    @classmethod
    def mark(cls) -> str:
        """The text to put where the changing text goes."""
        return cls._MARK

    def event(self, text: str) -> bytes:
        """The event with this text."""
        return self._before + orjson.dumps(text) + self._after
