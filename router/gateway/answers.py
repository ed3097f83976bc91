"""Generated answers as HTTP: whole, or as server-sent events. Shared by every route that generates.

One HTTP request may want several choices: each is a request of its own on the bus, and their events are merged here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

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
from llmlb.router.call import Call, Direct
from llmlb.router.gateway.calls import call_of
from llmlb.router.gateway.short_way import EventStream, begin_events, send_json

log = logging.getLogger("llmlb.router.gateway.answers")

QUIET_S = 2.0
"""Without a token for this long, the event stream begins with comments, so that no proxy or client gives up."""
PARALLEL_CHOICES = 8
"""Choices of one request that are worked on at a time."""
CHOICE_EVENTS_MAX = 256
"""Events of all choices that wait for the client; a slow one slows its choices down."""

UNSENT_MAX = 64 * 1024
"""Bytes a client may leave unread before its answer waits for it."""

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

    def take(self, delta: Delta) -> bool:
        """As :meth:`add`, for the direct way."""
        self.add(delta)
        return True

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

    def finish(self, usage: Usage) -> bytes:
        """What comes after the last event of the last choice. ``usage``: of all choices."""

    def alive(self, progress: Progress) -> bytes:
        """A sign of life while no token comes. Called for each, and sent only once it takes long."""

    def failed(self, error: LlmlbError) -> bytes:
        """The event of an answer that fails after its headers are out; nothing comes after it."""


Run = Callable[[InferRequest, Call], AsyncGenerator[Event, None]]
"""Runs one request."""
BeforeEnd = Callable[[Answer], Awaitable[None]]
"""Awaited before the end of an answer goes to the client. Of a stream it gets the end alone: its shape saw the rest."""


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
    if len(ends) == 1:
        return ends[0].usage
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
    events: AsyncGenerator[tuple[int, Event], None],
    shape: Shape,
    choices: int,
    prompts: int,
    direct: Direct | None = None,
    before_end: BeforeEnd | None = None,
) -> HTTPResponse:
    """Wait for the end, then answer. Raises LlmlbError; a client that goes away cancels this, and with it the work."""
    answers = [Answer() for _ in range(choices)]
    if direct is not None:
        direct.piece = answers[0].take
    async with contextlib.aclosing(events):
        async for index, event in events:
            answers[index].add(event)
    ends = [answer.end for answer in answers if answer.end is not None]
    if before_end is not None:
        await before_end(answers[0])
    body = shape.whole(answers, total_usage(ends, prompts))
    return raw(orjson.dumps(body), content_type="application/json")


async def _respond_one(
    request: Request, events: AsyncGenerator[Event, None], shape: Shape, direct: Direct, before_end: BeforeEnd | None
) -> HTTPResponse | None:
    """As :func:`respond_whole` for one choice, which most requests want: nothing to merge."""
    answer = Answer()
    direct.piece = answer.take
    try:
        async for event in events:
            answer.add(event)
    finally:
        await events.aclose()
    if answer.end is None:
        raise LlmlbError("the answer has no end")
    if before_end is not None:
        await before_end(answer)
    return await send_json(request, orjson.dumps(shape.whole([answer], answer.end.usage)))


async def respond_stream(
    request: Request,
    events: AsyncGenerator[tuple[int, Event], None],
    shape: Shape,
    prompts: int,
    direct: Direct | None = None,
    before_end: BeforeEnd | None = None,
) -> None:
    """Send the answers as they come.

    Raises LlmlbError while no header is sent; after that a failure is one typed event of the shape and the end of the
    stream, without ``[DONE]``.
    """
    began = time.monotonic()
    response = None
    opened: set[int] = set()
    ends: dict[int, End] = {}
    tail = b""
    async with contextlib.aclosing(events):
        try:
            async for index, event in events:
                if isinstance(event, Progress):
                    sign = shape.alive(event)
                    if response is None and time.monotonic() - began < QUIET_S:
                        continue
                    response = response or await begin_events(request)
                    await response.send(sign)
                    continue
                out = b""
                if index not in opened:
                    response = response or await begin_events(request)
                    opened.add(index)
                    out = shape.first(index)
                if isinstance(event, Delta):
                    out += shape.piece(index, event)
                elif isinstance(event, End):
                    ends[index] = event
                    if before_end is not None:
                        await before_end(Answer(end=event))
                    out += shape.last(index, event)
                    if direct is not None:
                        tail = out  # nothing comes after it: it goes out with the end
                        continue
                if out and response is not None:
                    await response.send(out)
                    if direct is not None and direct.piece is None and isinstance(event, Delta):
                        direct.piece = _writer(request, shape)
            if response is not None:
                tail += shape.finish(total_usage([ends[index] for index in sorted(ends)], prompts))
        except LlmlbError as error:
            if response is None:
                raise
            log.warning("stream_failed reason=%s error=%r detail=%s", error.reason, error.message, error.detail)
            tail = shape.failed(error)
        except Exception as error:  # the top of a request whose headers are out
            # Sanic would cut the connection, which clients take for a broken network.
            if response is None:
                raise
            log.error("stream_failed", exc_info=error)
            tail = shape.failed(LlmlbError("internal error"))
    if response is not None:
        await (response.eof(tail) if isinstance(response, EventStream) else _end(response, tail))


async def _end(response: Any, tail: bytes) -> None:
    """Of an answer that goes Sanic's way."""
    if tail:
        await response.send(tail)
    await response.eof()


def sign_of_life(event: Progress) -> str:
    """The text of a comment while no token comes."""
    if event.phase == "queued" and event.total:
        wait = "" if event.wait_s is None else f" x-llmlb-queue-wait-s={event.wait_s:.1f}"
        return f"queued x-llmlb-queue-position={event.done} of {event.total}{wait}"
    return event.phase


def _writer(request: Request, shape: Shape) -> Callable[[Delta], bool] | None:
    """Writes pieces of the only choice past Sanic, in the chunks that it would make; None where it makes none."""
    stream, transport = request.stream, cast(asyncio.WriteTransport | None, request.transport)
    chunked = getattr(getattr(stream, "response_func", None), "__name__", "") == "http1_response_chunked"
    if not chunked or transport is None:
        return None

    def piece(delta: Delta) -> bool:
        if transport.is_closing() or transport.get_write_buffer_size() > UNSENT_MAX:
            return False
        data = shape.piece(0, delta)
        if data:
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    return piece


async def respond(
    request: Request,
    inner: Sequence[InferRequest],
    shape: Shape,
    *,
    stream: bool,
    prompts: int = 1,
    run: Run | None = None,
    before_end: BeforeEnd | None = None,
) -> HTTPResponse | None:
    """Run the requests, one a choice, and answer in the asked form. ``prompts``: how many different ones there are.

    ``run``: instead of the gateway's inference. ``before_end``: for an answer of one choice.
    """
    if log.isEnabledFor(logging.DEBUG):
        log.debug("infer request=%s model=%r choices=%d", inner[0].request_id, inner[0].model, len(inner))
    run = run or request.app.ctx.gateway.inference.stream
    direct = Direct() if len(inner) == 1 else None
    call = call_of(request, streamed=stream, direct=direct, asked=inner[0])
    if direct is not None and not stream:
        return await _respond_one(request, run(inner[0], call), shape, direct, before_end)
    events = merged([run(one, call) for one in inner])
    if stream:
        await respond_stream(request, events, shape, prompts, direct, before_end)
        return None
    return await respond_whole(events, shape, len(inner), prompts, direct, before_end)
