"""What an engine is: something that a worker process steps, and that tells a sink what came out.

One engine holds one model. It runs in the worker's main thread and is never entered by two threads. The three engines
(llama.cpp, vLLM, simulated) are chosen by the model's format, never by the user.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import FinishReason, InferRequest, Timings, TokenLogprob, ToolCallPiece, Usage

Handle = int
"""Names one request between agent and worker; unique in the life of a worker."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request to a model gets that does not say it itself."""

    sampling: dict[str, float | int] = field(default_factory=dict)
    """Fields of :class:`llmlb.bus.messages.infer.Sampling` and their values."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; a request's own replace them."""
    system: str | None = None
    """The system prompt of a conversation that has none."""
    context_length: int | None = None
    """Tokens of a slot, where the operator set none."""

    def shown(self) -> dict[str, str]:
        """As `show` prints it."""
        out = {name: str(value) for name, value in sorted(self.sampling.items())}
        if self.stop:
            out["stop"] = " ".join(repr(text) for text in self.stop)
        if self.context_length is not None:
            out["num_ctx"] = str(self.context_length)
        return out


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
    defaults: Defaults = field(default_factory=Defaults)


def load_options(value: dict[str, Any]) -> LoadOptions:
    """The options of a worker, back from the JSON of ``asdict``."""
    defaults = dict(value.get("defaults") or {})
    defaults["stop"] = tuple(defaults.get("stop", ()))
    return LoadOptions(**{**value, "defaults": Defaults(**defaults)})


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

    def end(
        self, handle: Handle, reason: FinishReason, usage: Usage, timings: Timings, stop_text: str | None = None
    ) -> None:
        """The last word. ``stop_text``: the stop text that ended the answer, if one did."""

    def failed(self, handle: Handle, error: LlmlbError) -> None: ...

    def alive(self) -> None:
        """Within a long call: it goes on. What was said goes out now."""


class Engine(Protocol):
    """A loaded model."""

    slots: int
    context_length: int
    """Tokens of one slot, prompt and answer together."""
    capabilities: Capabilities

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Take a request in. Raises LlmlbError when it can't be run; otherwise its end goes to the sink.

        One with ``count_only`` ends in the next step, without a slot and without computing anything.
        """

    def cancel(self, handle: Handle) -> bool:
        """Forget a request and free its slot at once. False when it is not here (it ended already)."""

    def interrupt(self, handle: Handle) -> None:
        """This request, or a cancellation of it, is on its way. From any thread; may do nothing."""

    def step(self, sink: Sink) -> bool:
        """Do one piece of work (a decode step, a piece of prefill). False when there was nothing to do."""

    def going_on(self) -> bool:
        """False: it has work, and what does it may hang. The agent ends a worker that is silent for long."""

    def close(self) -> None:
        """Free the model."""
