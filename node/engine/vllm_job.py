"""One request at vLLM, and vLLM's pulse. Does not import vllm."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from llmlb.bus.messages.infer import InferRequest, TokenLogprob
from llmlb.node.engine.answer import AnswerReader
from llmlb.node.engine.interface import Handle, Piece


@dataclass(slots=True)
class Job:
    """One request at vLLM."""

    handle: Handle
    request: InferRequest
    prompt_tokens: int
    reader: AnswerReader
    after: bytes
    """What belongs behind a forced tool call."""
    queued_at: float
    reported_at: float
    work: Future[None] | None = None
    sampled: int = 0
    """Tokens of the answer, those of the continuation included."""
    thought: int = 0
    """Of those, tokens of thinking."""
    cached: int = 0
    prefill_ms: float = 0.0
    first_token_at: float = 0.0
    unsent: Piece = field(default_factory=Piece)

    @property
    def chat(self) -> bool:
        return self.request.kind == "chat"

    def read(self, token: int, data: bytes) -> Piece:
        """Count a token and read its bytes."""
        self.sampled += 1
        piece = self.reader.feed(data)
        self.thought += self.reader.thinking or bool(piece.reasoning)
        return piece

    def add(self, piece: Piece, token: int | None = None, logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        unsent = self.unsent
        unsent.text += piece.text
        unsent.reasoning += piece.reasoning
        unsent.tool_calls += piece.tool_calls
        if token is not None:
            unsent.token_ids += (token,)
        unsent.logprobs += logprobs


class Pulse:
    """A vLLM stat logger that only notes that the engine stepped: the proof of life behind progress replies."""

    def __init__(self) -> None:
        self.at = 0.0

    def record(self, *_: Any, **__: Any) -> None:
        self.at = time.monotonic()

    def log_engine_initialized(self) -> None:
        pass

    def log(self) -> None:
        pass

    def record_sleep_state(self, *_: Any, **__: Any) -> None:
        pass
