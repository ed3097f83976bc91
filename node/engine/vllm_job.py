"""One request at vLLM. Does not import vllm."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from llmlb.bus.messages.infer import FinishReason, InferRequest, Timings, TokenLogprob, Usage
from llmlb.node.engine.answer import AnswerReader
from llmlb.node.engine.interface import Handle, Piece


@dataclass(slots=True)
class Job:
    """One request at vLLM.

    vLLM is called once for most. Its grammar holds from the first token of a call, so an answer in a given form that
    begins with thinking takes a second one behind the thinking; so does one whose thinking is ended by its budget.
    """

    handle: Handle
    request: InferRequest
    prompt: list[int]
    reader: AnswerReader
    queued_at: float
    reported_at: float
    """When something of it was sent last, of the monotonic clock."""
    room: int = 0
    """Tokens of the answer at most, those of the continuation included."""
    form: dict[str, Any] = field(default_factory=dict)
    """What SamplingParams gets so that the answer has its form; {} for a free one."""
    formed: bool = False
    """True once it holds: behind the thinking, if there is any."""
    before: str = ""
    """What stands before a forced call behind the thinking, and the tokens of it: prompt, not answer."""
    lead: list[int] = field(default_factory=list)
    after: bytes = b""
    """What belongs behind a forced call."""
    answer: list[int] = field(default_factory=list)
    """Its tokens, those of the continuation included."""
    closing: list[int] = field(default_factory=list)
    """Tokens still to come of what ends the thinking, whose budget is used up."""
    calls: int = 0
    """Which call of vLLM is at work: what an earlier one made is of no use."""
    work: Future[None] | None = None
    sampled: int = 0
    """Tokens of the answer, the one that ends it included."""
    thought: int = 0
    """Of those, tokens of thinking."""
    cached: int = 0
    prefill_ms: float = 0.0
    first_token_at: float = 0.0
    unsent: Piece = field(default_factory=Piece)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def chat(self) -> bool:
        return self.request.kind == "chat"

    @property
    def tokens(self) -> list[int]:
        """What the next call of vLLM begins with."""
        return [*self.prompt, *self.answer, *(self.lead if self.formed else ())]

    def count(self) -> None:
        """A token was sampled."""
        self.sampled += 1
        self.thought += self.reader.thinking

    def read(self, token: int, data: bytes) -> Piece:
        """Count a token of the answer and read its bytes."""
        self.count()
        self.answer.append(token)
        if self.closing:
            self.closing = self.closing[1:] if token == self.closing[0] else []
        return self.reader.feed(data)

    def add(self, piece: Piece, token: int | None = None, logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        unsent = self.unsent
        unsent.text += piece.text
        unsent.reasoning += piece.reasoning
        unsent.tool_calls += piece.tool_calls
        if token is not None:
            unsent.token_ids += (token,)
        unsent.logprobs += logprobs

    def over(self) -> FinishReason | None:
        """Why nothing more is to come."""
        if self.reader.stopped or (self.reader.called and not self.request.parallel_tool_calls):
            return "stop"
        return "length" if self.sampled >= self.room else None

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.sampled,
            reasoning_tokens=self.thought,
            cached_tokens=self.cached,
        )

    def timings(self, now: float) -> Timings:
        first = self.first_token_at or now
        return Timings(
            queue_ms=max(0.0, (first - self.queued_at) * 1000 - self.prefill_ms),
            prefill_ms=self.prefill_ms,
            decode_ms=(now - first) * 1000,
        )
