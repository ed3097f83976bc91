"""The simulated engine behind OpenAI's chat completions, without nodes and bus: for the direct call and the floor.

The same engine, timer and script as the simulated nodes have, so that what differs is the way to it. Each model of
``SPEEDS`` is served by ENGINES engines in turn, as it is by as many nodes of a cluster.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any, Literal, cast

import orjson

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import ChatMessage, FinishReason, InferRequest, Sampling, Timings, Usage
from llmlb.node.engine.interface import Handle, Piece
from llmlb.node.engine.simulated import FaultScript, SimulatedEngine, SimulatedSpec
from llmlb.node.engine.simulated_pool import SimulatedProcess, Timer

FAST, SLOW = "simulated/fast", "simulated/slow"
SPEEDS = {FAST: 100.0, SLOW: 0.5}
"""Tokens a second of each stream. 100: two tokens are never due at once, so that chunks are not merged."""
ENGINES = 4
SLOTS = 600
"""Of each engine: 2,400 streams in all."""
ANSWER_TOKENS = 4000

Put = Callable[[bytes, bool], None]
"""Takes bytes of an answer, and whether they are the last."""


def spec(tokens_per_s: float) -> SimulatedSpec:
    return SimulatedSpec(tokens_per_s=tokens_per_s, slots=SLOTS, answer_tokens=ANSWER_TOKENS, context_length=8192)


class _Stream:
    """One answer as server-sent events, or as one body."""

    def __init__(self, put: Put, model: str, number: int, *, stream: bool, usage: bool) -> None:
        self._put, self._stream, self._usage = put, stream, usage
        self._head = {"id": f"chatcmpl-{number}", "created": int(time.time()), "model": model}
        chunk = orjson.dumps({**self._head, "object": "chat.completion.chunk", "choices": []})
        self._before = b"data: " + chunk[:-3] + b'[{"index":0,"delta":{"content":'
        self._text = ""

    def delta(self, text: str) -> None:
        if self._stream:
            self._put(self._before + orjson.dumps(text) + b'},"finish_reason":null}]}\n\n', False)
        else:
            self._text += text

    def end(self, reason: str, usage: Usage) -> None:
        counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        counts["total_tokens"] = sum(counts.values())
        if not self._stream:
            message = {"role": "assistant", "content": self._text}
            choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
            body = {**self._head, "object": "chat.completion", "choices": [choice], "usage": counts}
            self._put(orjson.dumps(body), True)
            return
        choice = {"index": 0, "delta": {}, "finish_reason": reason}
        last: dict[str, Any] = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        out = b"data: " + orjson.dumps(last) + b"\n\n"
        if self._usage:
            out += b"data: " + orjson.dumps({**last, "choices": [], "usage": counts}) + b"\n\n"
        self._put(out + b"data: [DONE]\n\n", True)


class _Engine:
    """One engine on the timer, as :class:`SimulatedProcess` is; its own sink."""

    def __init__(self, timer: Timer, tokens_per_s: float) -> None:
        self.wake_at = math.inf
        self._timer = timer
        self._engine = SimulatedEngine(spec(tokens_per_s), FaultScript())
        self._streams: dict[Handle, _Stream] = {}

    def submit(self, handle: Handle, request: InferRequest, stream: _Stream) -> None:
        self._streams[handle] = stream
        self._engine.submit(handle, request)
        self._wake()

    def cancel(self, handle: Handle) -> None:
        if self._streams.pop(handle, None) is not None:
            self._engine.cancel(handle)

    def _wake(self) -> None:
        self._timer.wake(cast(SimulatedProcess, self), self._engine.next_due())

    async def work(self) -> None:
        self._engine.step(self)
        self._wake()

    def progress(self, handle: Handle, phase: Literal["queued", "prefill"], done: int, total: int) -> None:
        """Of no interest here."""

    def delta(self, handle: Handle, piece: Piece) -> None:
        self._streams[handle].delta(piece.text)

    def alive(self) -> None: ...

    def embedded(self, handle: Handle, index: int, vector: bytes) -> None:
        raise NotImplementedError

    def end(
        self, handle: Handle, reason: FinishReason, usage: Usage, timings: Timings, stop_text: str | None = None
    ) -> None:
        self._streams.pop(handle).end(reason, usage)

    def failed(self, handle: Handle, error: LlmlbError) -> None:
        self._streams.pop(handle).end("error", Usage(prompt_tokens=0, completion_tokens=0))


class Models:
    """Everything that is served. To be made inside a running loop."""

    def __init__(self) -> None:
        self._timer = timer = Timer()
        timer.enter()
        self._engines = {model: [_Engine(timer, speed) for _ in range(ENGINES)] for model, speed in SPEEDS.items()}
        self._numbers = itertools.count(1)

    def ask(self, body: bytes, put: Put) -> Callable[[], None]:
        """Answer one request body; what is returned cancels it. Raises KeyError, LlmlbError for a bad one."""
        asked = orjson.loads(body)
        messages = tuple(ChatMessage(role=one["role"], content=one["content"]) for one in asked["messages"])
        limit = asked.get("max_tokens") or asked.get("max_completion_tokens")
        number = next(self._numbers)
        engine = self._engines[asked["model"]][number % ENGINES]
        request = InferRequest(
            request_id=str(number),
            model=asked["model"],
            kind="chat",
            messages=messages,
            sampling=Sampling(seed=asked.get("seed"), max_tokens=limit),
        )
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        stream = _Stream(put, asked["model"], number, stream=bool(asked.get("stream")), usage=usage)
        engine.submit(number, request, stream)
        return lambda: engine.cancel(number)

    async def close(self) -> None:
        """What runs says nothing more."""
        await self._timer.leave()
