"""One generated answer as HTTP: whole, or as server-sent events. Shared by the chat and the completions route."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import orjson
from sanic import Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import Delta, Embedded, End, InferRequest, Progress, Usage
from llmlb.router.gateway import sse
from llmlb.router.gateway.http_errors import body_of

log = logging.getLogger("llmlb.router.gateway.answers")

QUIET_S = 2.0
"""Without a token for this long, the event stream begins with comments, so that no proxy or client gives up."""

Event = Progress | Delta | Embedded | End


class Shape(Protocol):
    """How a surface words an answer."""

    def whole(self, text: str, end: End) -> dict[str, Any]:
        """The answer in one piece."""

    def first(self) -> bytes:
        """The event before the first text, or nothing."""

    def text(self, text: str) -> bytes:
        """The event for a piece of text."""

    def last(self, end: End) -> bytes:
        """The event with the finish reason, and the usage event if it was asked for."""


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


async def respond_whole(events: AsyncGenerator[Event, None], shape: Shape) -> HTTPResponse:
    """Wait for the end, then answer. Raises LlmlbError; a client that goes away cancels this, and with it the work."""
    texts: list[str] = []
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                texts.append(event.text)
            elif isinstance(event, End):
                return raw(orjson.dumps(shape.whole("".join(texts), event)), content_type="application/json")
    raise LlmlbError("the answer has no end")


async def respond_stream(request: Request, events: AsyncGenerator[Event, None], shape: Shape) -> None:
    """Send the answer as it comes.

    Raises LlmlbError while no header is sent; after that a failure is one typed ``data: {"error": …}`` event and the
    end of the stream, without ``[DONE]``.
    """
    began = time.monotonic()
    response = None
    opened = False
    async with contextlib.aclosing(events):
        try:
            async for event in events:
                if isinstance(event, Progress):
                    if response is None and time.monotonic() - began < QUIET_S:
                        continue
                    response = response or await _begin(request)
                    await response.send(sse.comment(event.phase))
                    continue
                out = b""
                if not opened:
                    response = response or await _begin(request)
                    out, opened = shape.first(), True
                if isinstance(event, Delta):
                    if event.text:
                        out += shape.text(event.text)
                elif isinstance(event, End):
                    out += shape.last(event) + sse.DONE
                if out and response is not None:
                    await response.send(out)
        except LlmlbError as error:
            if response is None:
                raise
            log.warning("stream_failed reason=%s error=%r detail=%s", error.reason, error.message, error.detail)
            await response.send(sse.data(body_of(error)))
    if response is not None:
        await response.eof()


async def _begin(request: Request) -> Any:
    headers = {**sse.HEADERS, "x-request-id": request.ctx.request_id}
    return await request.respond(content_type=sse.CONTENT_TYPE, headers=headers)


async def respond(request: Request, inner: InferRequest, shape: Shape, *, stream: bool) -> HTTPResponse | None:
    """Run ``inner`` and answer in the asked form."""
    log.debug("infer request=%s model=%r", inner.request_id, inner.model)
    events = request.app.ctx.gateway.inference.stream(inner)
    if stream:
        await respond_stream(request, events, shape)
        return None
    return await respond_whole(events, shape)
