"""The vLLM engine and a sink, for its tests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import (
    ChatMessage,
    FinishReason,
    InferRequest,
    LogitBias,
    Sampling,
    Timings,
    ToolCallPiece,
    Usage,
)
from llmlb.node.engine.interface import LoadOptions, Piece
from llmlb.node.engine.vllm import VllmEngine

SLOTS, CONTEXT = 4, 768
ANSWER_S = 60.0
END = 1
"""The tiny model's end-of-turn token."""
ENDLESS: dict[str, Any] = {"max_tokens": None, "logit_bias": (LogitBias(token_id=END, bias=-100.0),)}


def options(folder: Path, template: str | None = None) -> LoadOptions:
    return LoadOptions("tiny", str(folder), template, SLOTS, CONTEXT, None)


def chat(text: str = "hi", **fields: Any) -> InferRequest:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 24, **fields.pop("sampling", {})})
    return InferRequest(
        request_id="r",
        model="tiny",
        kind="chat",
        messages=(ChatMessage(role="user", content=text),),
        sampling=sampling,
        **fields,
    )


@dataclass
class Answer:
    """What one request got."""

    pieces: list[Piece] = field(default_factory=list)
    progress: int = 0
    reason: FinishReason | None = None
    usage: Usage = field(default_factory=lambda: Usage(prompt_tokens=0, completion_tokens=0))
    timings: Timings = field(default_factory=Timings)
    error: LlmlbError | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def reasoning(self) -> str:
        return "".join(piece.reasoning for piece in self.pieces)

    @property
    def calls(self) -> list[ToolCallPiece]:
        return [call for piece in self.pieces for call in piece.tool_calls]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for piece in self.pieces for token in piece.token_ids)

    @property
    def over(self) -> bool:
        return self.reason is not None or self.error is not None


class Rig:
    """An engine and a sink. Implements :class:`llmlb.node.engine.interface.Sink`."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.answers: dict[int, Answer] = {}
        self._handles = itertools.count(1)

    def progress(self, handle: int, phase: Literal["queued", "prefill"], done: int, total: int) -> None:
        self.answers[handle].progress += 1

    def delta(self, handle: int, piece: Piece) -> None:
        assert not self.answers[handle].over
        self.answers[handle].pieces.append(piece)

    def embedded(self, handle: int, index: int, vector: bytes) -> None:
        raise AssertionError("no embeddings here")

    def end(
        self, handle: int, reason: FinishReason, usage: Usage, timings: Timings, stop_text: str | None = None
    ) -> None:
        answer = self.answers[handle]
        assert not answer.over
        answer.reason, answer.usage, answer.timings = reason, usage, timings

    def failed(self, handle: int, error: LlmlbError) -> None:
        assert not self.answers[handle].over
        self.answers[handle].error = error

    def submit(self, request: InferRequest) -> int:
        handle = next(self._handles)
        self.answers[handle] = Answer()
        self.engine.submit(handle, request)
        return handle

    def until(self, condition: Callable[[], Any]) -> None:
        """Step until it holds."""
        deadline = time.monotonic() + ANSWER_S
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.engine.step(self)

    def finish(self, *handles: int) -> list[Answer]:
        self.until(lambda: all(self.answers[handle].over for handle in handles))
        return [self.answers[handle] for handle in handles]

    def ask(self, request: InferRequest) -> Answer:
        (answer,) = self.finish(self.submit(request))
        if answer.error is not None:
            raise answer.error
        return answer
