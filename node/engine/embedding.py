"""Vectors of texts, in a context of their own that is made when the first one is asked for.

Pooling comes from the model; a model that names none (one made to answer) is pooled by mean. Vectors have length 1.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llmlb.bus.errors import ContextOverflow, EngineCrashed, InvalidRequest, LlmlbError
from llmlb.bus.messages.infer import InferRequest, Timings, Usage
from llmlb.node.engine.interface import Handle, Sink
from llmlb.node.engine.llama_context import POOLING_MEAN, POOLING_NONE, POOLING_RANK, Context, ContextSize
from llmlb.node.engine.llama_model import Model

MAX_TOKENS = 2048
"""Tokens of one input at most: all of them go through in one call, whose buffers grow with it."""
ABORTED = 2
"""Source: llama.h, ``llama_decode``."""
POOLING_MODEL = -1
"""Source: llama.h, LLAMA_POOLING_TYPE_UNSPECIFIED."""


@dataclass(slots=True)
class _Job:
    handle: Handle
    inputs: list[list[int]]
    next: int = 0
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    reported_at: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.inputs))

    @property
    def done_tokens(self) -> int:
        return sum(map(len, self.inputs[: self.next]))


class Embedder:
    """Embedding requests, one input at a time, in the order they came.

    ``going_on`` is called now and then within the call that embeds one, which may take minutes.
    """

    def __init__(self, model: Model, main: Context, threads: int, going_on: Callable[[], None] = lambda: None) -> None:
        self._model = model
        self._going_on = going_on
        self._stop = threading.Event()
        self._in_call: Handle | None = None
        self.limit = min(MAX_TOKENS, model.trained_context, main.tokens)
        """Tokens of one input at most."""
        self._size = ContextSize(1, self.limit, self.limit, threads)
        self._context: Context | None = None
        self.jobs: deque[_Job] = deque()

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Raises InvalidRequest (an empty input, a token that is none), ContextOverflow."""
        inputs = [self._tokens(item, index, request.truncate) for index, item in enumerate(request.inputs)]
        self.jobs.append(_Job(handle, inputs))

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
        for job in self.jobs:
            if job.handle == handle:
                self.jobs.remove(job)
                return True
        return False

    def step(self, sink: Sink) -> bool:
        """Embed one input. False when there is none."""
        if not self.jobs:
            return False
        job = self.jobs[0]
        job.started_at = job.started_at or time.monotonic()
        try:
            context = self._ready_context()
        except LlmlbError as error:
            self.jobs.popleft()
            sink.failed(job.handle, error)
            return True
        code = self._call(context, job)
        if code == ABORTED:
            return True  # its cancellation comes next; otherwise the call is made again
        if code != 0:
            self.jobs.popleft()
            sink.failed(job.handle, EngineCrashed(f"llama.cpp failed to embed (code {code})"))
            return True
        vector = context.vector(0).astype(np.float64)
        length = float(np.sqrt((vector * vector).sum()))
        sink.embedded(job.handle, job.next, (vector / length if length else vector).astype("<f4").tobytes())
        job.next += 1
        if job.next == len(job.inputs):
            self.jobs.popleft()
            now = time.monotonic()
            usage = Usage(prompt_tokens=job.prompt_tokens, completion_tokens=0)
            queue_ms, prefill_ms = (job.started_at - job.queued_at) * 1000, (now - job.started_at) * 1000
            sink.end(job.handle, "stop", usage, Timings(queue_ms=queue_ms, prefill_ms=prefill_ms))
        return True

    def _call(self, context: Context, job: _Job) -> int:
        """Compute its next input; the return code."""
        context.forget(0)
        self._stop.clear()
        self._in_call = job.handle
        context.abortable(True)
        try:
            return context.encode_all(job.inputs[job.next], 0)
        finally:
            context.abortable(False)
            self._in_call = None

    def interrupt(self, handle: Handle) -> None:
        """A cancellation of this request is on its way: end its call. From any thread."""
        if self._in_call == handle:
            self._stop.set()

    def _stopped(self) -> bool:
        self._going_on()
        return self._stop.is_set()

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
            context.abort_when(self._stopped)
            self._context = context
        return self._context

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
            self._context = None
