"""The slots of the llama.cpp engine: sequences of one context, what their caches hold, and who gets which."""

from __future__ import annotations

import time
from collections.abc import Iterable

from llmlb.node.engine import kv
from llmlb.node.engine.jobs import Job
from llmlb.node.engine.llama_context import Context
from llmlb.node.engine.sampling import Logits


class Slots:
    """``removable`` False: a sequence can't be cut at a position, so nothing of it is ever used again."""

    def __init__(self, context: Context, count: int, *, removable: bool) -> None:
        self.free = list(range(count))
        self.used_at = [0.0] * count
        """When each was given back last, of the monotonic clock."""
        self._context = context
        self._removable = removable
        self._held = [kv.Held() for _ in range(count)]
        self._after_prompt: list[tuple[int, Logits] | None] = [None] * count
        """By sequence: the length of the last whole prompt there, and the logits after it."""

    def take(self, job: Job, busy: Iterable[Job]) -> Logits | None:
        """Begin a job in the free sequence that suits it best; one has to be free. ``busy``: the jobs in the others.

        What prefill would end with, when this very prompt was the last one there: then there is nothing to compute.
        """
        held = list(self._held)
        for other in busy:
            held[other.seq] = other.held()
        if not self._removable:
            held = [kv.Held() for _ in held]
        choice = kv.choose(job.plain, self.free, held, self.used_at)
        source = choice.sequence if choice.copy_from is None else choice.copy_from
        reuse = choice.reuse if job.plain else 0
        logits = self._logits_after(job, source, held[source], reuse)
        if logits is not None:
            reuse = len(job.plain)
        if choice.copy_from is not None and reuse:
            self._context.copy(choice.copy_from, choice.sequence)
        if not self._context.forget(choice.sequence, reuse):
            self._context.forget(choice.sequence)
            reuse, logits = 0, None
        self.free.remove(choice.sequence)
        job.begin(choice.sequence, reuse)
        self._after_prompt[job.seq] = None if logits is None else (reuse, logits)
        return logits

    def _logits_after(self, job: Job, source: int, held: kv.Held, reuse: int) -> Logits | None:
        saved = self._after_prompt[source]
        size = len(job.plain)
        if saved is None or saved[0] != size or not reuse or not job.text_only or job.request.continuation:
            return None
        return saved[1] if held.tokens[:size] == job.plain else None

    def prefilled(self, job: Job, logits: Logits) -> None:
        """Its prompt is in the cache, and these come after it."""
        if job.text_only and not job.request.continuation:
            self._after_prompt[job.seq] = (len(job.plain), logits.copy())

    def give_back(self, job: Job) -> None:
        """Its sequence is free; what the cache holds stays for a later prompt."""
        self._held[job.seq] = job.held() if self._removable else kv.Held()
        self.used_at[job.seq] = time.monotonic()
        self.free.append(job.seq)
        job.seq = -1

    def empty(self, sequence: int) -> None:
        """What was known of its cache holds no more."""
        self._held[sequence], self._after_prompt[sequence] = kv.Held(), None

    def forget(self) -> None:
        """Nothing is known of the caches that are free."""
        self._held = [kv.Held() for _ in self._held]
