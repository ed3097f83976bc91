"""Vectors of texts, in a context of their own that is made when the first one is asked for.

Pooling comes from the model; a model that names none (one made to answer) is pooled by mean. Vectors have length 1.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from llmlb.bus.errors import ContextOverflow, EngineCrashed, InvalidRequest, LlmlbError
from llmlb.bus.messages.infer import InferRequest, Timings, Usage
from llmlb.node.engine.interface import Handle, Sink
from llmlb.node.engine.llama_library import POOLING_MEAN, POOLING_NONE, POOLING_RANK, Context, ContextSize, Model

MAX_TOKENS = 2048
"""Tokens of one input at most: all of them go through in one call, whose buffers grow with it."""
POOLING_MODEL = -1
"""Source: llama.h, LLAMA_POOLING_TYPE_UNSPECIFIED."""


@dataclass(slots=True)
class _Job:
    handle: Handle
    inputs: list[list[int]]
    next: int = 0
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0


class Embedder:
    """Embedding requests, one input at a time, in the order they came."""

    def __init__(self, model: Model, main: Context, threads: int) -> None:
        self._model = model
        self.limit = min(MAX_TOKENS, model.trained_context, main.tokens)
        """Tokens of one input at most."""
        self._size = ContextSize(1, self.limit, self.limit, threads)
        self._context: Context | None = None
        self._jobs: deque[_Job] = deque()

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Raises InvalidRequest (an empty input, a token that is none), ContextOverflow."""
        inputs = [self._tokens(item, index, request.truncate) for index, item in enumerate(request.inputs)]
        self._jobs.append(_Job(handle, inputs))

    def _tokens(self, item: str | tuple[int, ...], index: int, truncate: bool) -> list[int]:
        if isinstance(item, str):
            tokens = self._model.tokenize(item, add_special=True, parse_special=False)
        else:
            tokens = list(item)
            if any(not 0 <= token < self._model.vocabulary for token in tokens):
                raise InvalidRequest(
                    f"a token of this model is 0 to {self._model.vocabulary - 1}", param=f"input.{index}"
                )
        if not tokens:
            raise InvalidRequest("an input must not be empty", param=f"input.{index}")
        if len(tokens) > self.limit:
            if not truncate:
                raise ContextOverflow(
                    f"input {index} has {len(tokens)} tokens; {self._model.name} takes {self.limit}. "
                    'With "truncate": true it is cut at its end',
                    param=f"input.{index}",
                )
            tokens = tokens[: self.limit]
        return tokens

    def cancel(self, handle: Handle) -> bool:
        """Forget a request; False when it is not here."""
        for job in self._jobs:
            if job.handle == handle:
                self._jobs.remove(job)
                return True
        return False

    def step(self, sink: Sink) -> bool:
        """Embed one input. False when there is none."""
        if not self._jobs:
            return False
        job = self._jobs[0]
        job.started_at = job.started_at or time.monotonic()
        try:
            context = self._ready_context()
        except LlmlbError as error:
            self._jobs.popleft()
            sink.failed(job.handle, error)
            return True
        context.forget(0)
        code = context.encode_all(job.inputs[job.next], 0)
        if code != 0:
            self._jobs.popleft()
            sink.failed(job.handle, EngineCrashed(f"llama.cpp failed to embed (code {code})"))
            return True
        vector = context.vector(0).astype(np.float64)
        length = float(np.sqrt((vector * vector).sum()))
        sink.embedded(job.handle, job.next, (vector / length if length else vector).astype("<f4").tobytes())
        job.next += 1
        if job.next == len(job.inputs):
            self._jobs.popleft()
            now = time.monotonic()
            usage = Usage(prompt_tokens=sum(map(len, job.inputs)), completion_tokens=0)
            queue_ms, prefill_ms = (job.started_at - job.queued_at) * 1000, (now - job.started_at) * 1000
            sink.end(job.handle, "stop", usage, Timings(queue_ms=queue_ms, prefill_ms=prefill_ms))
        return True

    def _ready_context(self) -> Context:
        """Raises ModelLoadFailed (no room for it), InvalidRequest (a model that ranks)."""
        if self._context is None:
            context = Context(self._model, self._size, pooling=POOLING_MODEL)
            pooling = context.pooling
            if pooling in (POOLING_NONE, POOLING_RANK):
                context.close()
            if pooling == POOLING_RANK:
                raise InvalidRequest(f"{self._model.name} ranks texts; it makes no vectors", param="model")
            if pooling == POOLING_NONE:
                context = Context(self._model, self._size, pooling=POOLING_MEAN)
            self._context = context
        return self._context

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
            self._context = None
