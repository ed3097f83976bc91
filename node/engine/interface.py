"""What an engine is: something that a worker process steps, and that tells a sink what came out.

One engine holds one model. It runs in the worker's main thread and is never entered by two threads. The three engines
(llama.cpp, vLLM, simulated) are chosen by the model's format, never by the user.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import FinishReason, InferRequest, Timings, TokenLogprob, ToolCallPiece, Usage

Handle = int
"""Names one request between agent and worker; unique in the life of a worker."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What to load, and how. None: the engine decides."""

    model: str
    path: str
    template: str | None
    slots: int | None
    context_length: int | None
    threads: int | None
    projector: str | None = None
    """The mmproj file beside the model, for images."""
    gpu_layers: int = -1
    """Layers to put onto the GPU; -1 all of them, where there is one."""


@dataclass(slots=True)
class Piece:
    """A piece of an answer, as it goes to the client."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallPiece, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a loaded model can do; what it can't is a 400 that says so."""

    chat: bool = True
    vision: bool = False
    embedding: bool = True
    tools: bool = True
    same_answer: bool = False
    """True: the self-test found that neighbours, prefix reuse and continuation do not change an answer."""
    notes: tuple[str, ...] = field(default=())


class Sink(Protocol):
    """Where an engine puts what it made. Each request gets exactly one ``end`` or ``failed``."""

    def progress(self, handle: Handle, phase: Literal["queued", "prefill"], done: int, total: int) -> None: ...

    def delta(self, handle: Handle, piece: Piece) -> None: ...

    def embedded(self, handle: Handle, index: int, vector: bytes) -> None:
        """The vector of one input: float32, little-endian."""

    def end(self, handle: Handle, reason: FinishReason, usage: Usage, timings: Timings) -> None: ...

    def failed(self, handle: Handle, error: LlmlbError) -> None: ...


class Engine(Protocol):
    """A loaded model."""

    slots: int
    context_length: int
    """Tokens of one slot, prompt and answer together."""
    capabilities: Capabilities

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Take a request in. Raises LlmlbError when it can't be run; otherwise its end goes to the sink."""

    def cancel(self, handle: Handle) -> bool:
        """Forget a request and free its slot at once. False when it is not here (it ended already)."""

    def interrupt(self, handle: Handle) -> None:
        """A cancellation of this request is on its way. From any thread; may do nothing."""

    def step(self, sink: Sink) -> bool:
        """Do one piece of work (a decode step, a piece of prefill). False when there was nothing to do."""

    def close(self) -> None:
        """Free the model."""
