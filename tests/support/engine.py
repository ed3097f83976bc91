"""An engine driven step by step in the test's own process, and what came out of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import (
    ChatMessage,
    FinishReason,
    InferRequest,
    Sampling,
    Timings,
    TokenLogprob,
    ToolCallPiece,
    Usage,
)
from llmlb.node.engine.interface import Engine, Handle, LoadOptions, Piece
from llmlb.node.store.bundled import bundled_path
from llmlb.node.store.gguf import read_gguf


@dataclass
class Heard:
    """Everything the sink was told about one request."""

    text: str = ""
    reasoning: str = ""
    tokens: list[int] = field(default_factory=list)
    tool_calls: list[ToolCallPiece] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    vectors: dict[int, bytes] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: LlmlbError | None = None
    stop_text: str | None = None

    @property
    def over(self) -> bool:
        return self.reason is not None or self.error is not None


class Driver:
    """Runs requests on an engine and collects their answers. Implements the engine's Sink."""

    def __init__(self, engine: Engine, *, tested: bool = True) -> None:
        """``tested``: after its self-test, seconds of CPU time, which else takes place while nothing is asked."""
        self.engine = engine
        self._heard: dict[Handle, Heard] = {}
        self._handles = itertools.count(1)
        while tested and engine.step(self):
            pass

    def progress(self, handle: Handle, phase: Literal["queued", "prefill"], done: int, total: int) -> None:
        self._heard[handle].progress.append((phase, done, total))

    def delta(self, handle: Handle, piece: Piece) -> None:
        heard = self._heard[handle]
        heard.text += piece.text
        heard.reasoning += piece.reasoning
        heard.tokens += piece.token_ids
        heard.tool_calls += piece.tool_calls
        heard.logprobs += piece.logprobs
        heard.pieces.append(piece)
        heard.times.append(time.monotonic())

    def alive(self) -> None: ...

    def embedded(self, handle: Handle, index: int, vector: bytes) -> None:
        self._heard[handle].vectors[index] = vector

    def end(
        self, handle: Handle, reason: FinishReason, usage: Usage, timings: Timings, stop_text: str | None = None
    ) -> None:
        heard = self._heard[handle]
        assert not heard.over, "two ends"
        heard.reason, heard.usage, heard.timings, heard.stop_text = reason, usage, timings, stop_text

    def failed(self, handle: Handle, error: LlmlbError) -> None:
        heard = self._heard[handle]
        assert not heard.over, "two ends"
        heard.error = error

    def submit(self, request: InferRequest) -> Handle:
        """Hand a request over. Raises what the engine raises."""
        handle = next(self._handles)
        self._heard[handle] = Heard()
        self.engine.submit(handle, request)
        return handle

    def heard(self, handle: Handle) -> Heard:
        return self._heard[handle]

    def step(self) -> bool:
        return self.engine.step(self)

    def until(self, condition: Callable[[], Any], steps: int = 20_000) -> None:
        """Step until ``condition`` holds."""
        for _ in range(steps):
            if condition():
                return
            if not self.step() and not condition():
                raise AssertionError("the engine says that it has nothing to do")  # a worker would sleep now
        raise AssertionError("it did not happen")

    def run(self, requests: Iterable[InferRequest]) -> list[Heard]:
        """All of them together, to their ends."""
        handles = [self.submit(request) for request in requests]
        self.until(lambda: all(self._heard[handle].over for handle in handles))
        return [self._heard[handle] for handle in handles]

    def one(self, request: InferRequest) -> Heard:
        """One alone, to its end."""
        return self.run([request])[0]


_ids = itertools.count()


def chat(*texts: str, continuation: tuple[int, ...] = (), system: str | None = None, **more: Any) -> InferRequest:
    """A conversation of user and assistant turns in turn; greedy unless said otherwise. Sampling fields go in too."""
    turns = [ChatMessage(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
    if system is not None:
        turns.insert(0, ChatMessage(role="system", content=system))
    fields = {key: more.pop(key) for key in list(more) if key in Sampling.model_fields}
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 64, **fields})
    return InferRequest(
        request_id=f"r{next(_ids)}",
        model="m",
        kind="chat",
        messages=tuple(turns),
        sampling=sampling,
        continuation=continuation,
        **more,
    )


def smollm2_options(
    *, slots: int = 4, context: int = 2048, threads: int = 1, template: str | None = None
) -> LoadOptions:
    """The real demo model. One thread: two of each of two test processes on two cores wait for each other."""
    path = bundled_path()
    assert path is not None
    return LoadOptions(
        model="smollm2",
        path=str(path),
        template=template or read_gguf(path).chat_template,
        slots=slots,
        context_length=context,
        threads=threads,
    )
