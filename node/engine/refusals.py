"""What becomes of a request at which the engine stumbled in a way that nobody foresaw.

It fails alone: its neighbours and the worker go on. It is told as the request's own fault, because another node would
stumble over it too, and the router would take it to one after the other.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

import orjson

from llmlb.bus.errors import BadMessage, InvalidRequest, LlmlbError, MessageTooLarge, OutOfMemory
from llmlb.bus.messages.errors import WireError

log = logging.getLogger("llmlb.node.engine.refusals")

MAX_CHARACTERS = 2000
"""Of the message of an error."""
_FRAMES = 3


def refusal(error: Exception) -> LlmlbError:
    """The error that whoever asked gets. What is not our own is logged: its kind and its place, never what it says,
    which may be the prompt."""
    if isinstance(error, BadMessage):
        return InvalidRequest(f"this version of the node can't read the request: {error.message}")
    if isinstance(error, MessageTooLarge):  # of what was made here
        return InvalidRequest("a piece of the answer, with its log probabilities, is too large for one message")
    if isinstance(error, LlmlbError):
        return error
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    place = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    log.error("request_refused error=%s place=%r", type(error).__name__, place)
    if isinstance(error, MemoryError):
        return OutOfMemory("there is no memory for this request")
    if isinstance(error, RecursionError):
        return InvalidRequest("the request is nested too deeply")
    return InvalidRequest(f"the engine can't take this request ({type(error).__name__})")


def written(error: LlmlbError) -> WireError:
    """An error for the wire, however it is worded: templates choose words of their own."""

    def plain(text: str | None) -> str | None:
        return text and text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()

    return WireError(
        reason=error.reason,
        message=plain(error.message) or "",
        param=plain(error.param),
        detail=plain(error.detail),
    )


def id_of(payload: bytes) -> str:
    """The id in the bytes of a request that can't be read otherwise; "" where there is none."""
    try:
        fields: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return ""
    found = fields.get("request_id") if isinstance(fields, dict) else None
    return found if isinstance(found, str) else ""
