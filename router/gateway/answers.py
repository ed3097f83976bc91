"""Generated answers as HTTP: whole, or as server-sent events. Shared by the chat and the completions route.

One HTTP request may want several choices: each is a request of its own on the bus, and their events are merged here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from sanic import Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import (
    Delta,
    Embedded,
    End,
    InferRequest,
    Progress,
    TokenLogprob,
    ToolCallPiece,
    Usage,
)
from llmlb.bus.tasks import Background
from llmlb.router.gateway import sse
from llmlb.router.gateway.http_errors import body_of

log = logging.getLogger("llmlb.router.gateway.answers")

QUIET_S = 2.0
"""Without a token for this long, the event stream begins with comments, so that no proxy or client gives up."""
PARALLEL_CHOICES = 8
"""Choices of one request that are worked on at a time."""
CHOICE_EVENTS_MAX = 256
"""Events of all choices that wait for the client; a slow one slows its choices down."""

Event = Progress | Delta | Embedded | End


@dataclass(slots=True)
class Answer:
    """One choice, put together."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallPiece] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: End | None = None

    def add(self, event: Event) -> None:
        """The next event of this choice."""
        if isinstance(event, Delta):
            self.text += event.text
            self.reasoning += event.reasoning
            for piece in event.tool_calls:
                self._add_call(piece)
            self.logprobs += event.logprobs
        elif isinstance(event, End):
            self.end = event

    def _add_call(self, piece: ToolCallPiece) -> None:
        """A call comes in pieces: the first one has its id and name, all have some of its arguments."""
        for at, call in enumerate(self.tool_calls):
            if call.index == piece.index:
                more = {"arguments": call.arguments + piece.arguments}
                self.tool_calls[at] = call.model_copy(update=more)
                return
        self.tool_calls.append(piece)


class Shape(Protocol):
    """How a surface words answers. ``index`` is the choice."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """All answers in one piece."""

    def first(self, index: int) -> bytes:
        """The event before the first text of a choice, or nothing."""

    def piece(self, index: int, delta: Delta) -> bytes:
        """The events for a piece of a choice."""

    def last(self, index: int, end: End) -> bytes:
        """The event with the finish reason of a choice."""

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage of all choices, if it was asked for."""


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def total_usage(ends: Sequence[End], prompts: int) -> Usage:
    """The usage of all choices: each prompt counted once, every token of an answer. Choices go prompt by prompt."""
    each = max(1, len(ends) // max(1, prompts))
    firsts = ends[::each]
    return Usage(
        prompt_tokens=sum(end.usage.prompt_tokens for end in firsts),
        cached_tokens=sum(end.usage.cached_tokens for end in firsts),
        completion_tokens=sum(end.usage.completion_tokens for end in ends),
        reasoning_tokens=sum(end.usage.reasoning_tokens for end in ends),
    )


async def merged(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several choices as they come. The first failure of one ends all; so does one without an End.

    The first choice goes ahead until its first token: the others then find their prompt in its cache, and a request
    that fails at once fails once. Closing this closes every choice and waits until it has ended.
    """
    if len(streams) == 1:
        event = None
        async with contextlib.aclosing(streams[0]) as only:
            async for event in only:
                yield 0, event
        if not isinstance(event, End):
            raise LlmlbError("the answer has no end")
        return
    # None: the choice has ended and is closed. Not at its End, or closing the last ones would be cut short.
    queue: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(CHOICE_EVENTS_MAX)
    started = asyncio.Event()
    room = asyncio.Semaphore(PARALLEL_CHOICES)

    async def pump(index: int, stream: AsyncGenerator[Event, None]) -> None:
        event = None
        try:
            if index:
                await started.wait()
            async with room, contextlib.aclosing(stream):
                async for event in stream:
                    if not isinstance(event, Progress):
                        started.set()
                    await queue.put((index, event))
            if not isinstance(event, End):
                raise LlmlbError("the answer has no end")
            await queue.put((index, None))
        except Exception as error:  # noqa: BLE001 - the top of a task: raised again by the one who reads the queue
            # The others are not let go: this ends them.
            await queue.put((index, error))

    background = Background("choices")
    try:
        for index, stream in enumerate(streams):
            background.start(pump(index, stream), f"choice.{index}")
        left = len(streams)
        while left:
            index, got = await queue.get()
            if isinstance(got, Exception):
                raise got
            if got is None:
                left -= 1
            else:
                yield index, got
    finally:
        await background.close()


async def respond_whole(
    events: AsyncGenerator[tuple[int, Event], None], shape: Shape, choices: int, prompts: int
) -> HTTPResponse:
    """Wait for the end, then answer. Raises LlmlbError; a client that goes away cancels this, and with it the work."""
    answers = [Answer() for _ in range(choices)]
    async with contextlib.aclosing(events):
        async for index, event in events:
            answers[index].add(event)
    ends = [answer.end for answer in answers if answer.end is not None]
    body = shape.whole(answers, total_usage(ends, prompts))
    return raw(orjson.dumps(body), content_type="application/json")


async def respond_stream(
    request: Request, events: AsyncGenerator[tuple[int, Event], None], shape: Shape, prompts: int
) -> None:
    """Send the answers as they come.

    Raises LlmlbError while no header is sent; after that a failure is one typed ``data: {"error": …}`` event and the
    end of the stream, without ``[DONE]``.
    """
    began = time.monotonic()
    response = None
    opened: set[int] = set()
    ends: dict[int, End] = {}
    async with contextlib.aclosing(events):
        try:
            async for index, event in events:
                if isinstance(event, Progress):
                    if response is None and time.monotonic() - began < QUIET_S:
                        continue
                    response = response or await _begin(request)
                    await response.send(sse.comment(event.phase))
                    continue
                out = b""
                if index not in opened:
                    response = response or await _begin(request)
                    opened.add(index)
                    out = shape.first(index)
                if isinstance(event, Delta):
                    out += shape.piece(index, event)
                elif isinstance(event, End):
                    ends[index] = event
                    out += shape.last(index, event)
                if out and response is not None:
                    await response.send(out)
            if response is not None:
                usage = total_usage([ends[index] for index in sorted(ends)], prompts)
                await response.send(shape.usage(usage) + sse.DONE)
        except LlmlbError as error:
            if response is None:
                raise
            log.warning("stream_failed reason=%s error=%r detail=%s", error.reason, error.message, error.detail)
            await response.send(sse.data(body_of(error)))
        except Exception as error:  # the top of a request whose headers are out
            # Sanic would cut the connection, which clients take for a broken network.
            if response is None:
                raise
            log.error("stream_failed", exc_info=error)
            await response.send(sse.data(body_of(LlmlbError("internal error"))))
    if response is not None:
        await response.eof()


async def _begin(request: Request) -> Any:
    headers = {**sse.HEADERS, "x-request-id": request.ctx.request_id}
    return await request.respond(content_type=sse.CONTENT_TYPE, headers=headers)


async def respond(
    request: Request, inner: Sequence[InferRequest], shape: Shape, *, stream: bool, prompts: int = 1
) -> HTTPResponse | None:
    """Run the requests, one a choice, and answer in the asked form. ``prompts``: how many different ones there are."""
    log.debug("infer request=%s model=%r choices=%d", inner[0].request_id, inner[0].model, len(inner))
    inference = request.app.ctx.gateway.inference
    events = merged([inference.stream(one) for one in inner])
    if stream:
        await respond_stream(request, events, shape, prompts)
        return None
    return await respond_whole(events, shape, len(inner), prompts)
