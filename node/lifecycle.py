"""Which models are in memory and when they leave it: pure, events and time in, effects out.

::

    absent → loading → ready ⇄ (busy) → stopping → absent
                 ↘ absent (load failed)
    ready → loading again, after a pause that doubles (crash) → failed (the third crash without an answer between)

A busy model is never unloaded, and no model is loaded twice at a time. ``now`` is seconds of any monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["absent", "loading", "ready", "stopping", "failed"]

CRASHES_MAX = 3
"""Crashes in a row, without a whole answer between them, after which a model is failed."""
BACKOFF_S = 0.5
"""Pause before the first restart; each further one is twice as long."""
FAILED_FOR_S = 600.0
"""A failed model is tried once more after this."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load this model, after a pause; answer with ``loaded``, ``load_failed`` or ``crashed``."""

    model: str
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload this model; answer with ``unloaded``."""

    model: str


Effect = Load | Unload


@dataclass(slots=True)
class _Entry:
    state: State
    running: int = 0
    idle_since: float = 0.0
    stop_wanted: bool = False
    unloading: bool = False


@dataclass(slots=True)
class _Trouble:
    crashes: int = 0
    why: str = ""
    at: float = 0.0


class Lifecycle:
    """``keep_alive_s``: idle time before unloading; negative never, 0 as soon as nothing runs."""

    def __init__(self, keep_alive_s: float) -> None:
        self._keep_alive_s = keep_alive_s
        self._entries: dict[str, _Entry] = {}
        self._trouble: dict[str, _Trouble] = {}

    def state(self, model: str) -> State:
        entry = self._entries.get(model)
        if entry is not None:
            return entry.state
        return "failed" if model in self._trouble and self._trouble[model].crashes >= CRASHES_MAX else "absent"

    def failed(self) -> dict[str, str]:
        """Models that are failed, and why."""
        return {model: self._trouble[model].why for model in sorted(self._trouble) if self.state(model) == "failed"}

    def forgive(self, model: str) -> bool:
        """Forget its crashes. False when there were none."""
        return self._trouble.pop(model, None) is not None

    def running(self, model: str) -> int:
        entry = self._entries.get(model)
        return 0 if entry is None else entry.running

    def want(self, model: str, now: float) -> list[Effect]:
        """Somebody asks for it. Nothing happens to one that is there already, or failed."""
        if model in self._entries:
            return []
        if self.state(model) == "failed":
            if now - self._trouble[model].at < FAILED_FOR_S:
                return []
            self._trouble[model].crashes = CRASHES_MAX - 1
        self._entries[model] = _Entry("loading")
        return [Load(model)]

    def loaded(self, model: str, now: float) -> list[Effect]:
        """The load succeeded. Those who waited for it have keep_alive to begin, 0 included: see :meth:`tick`."""
        entry = self._entries.get(model)
        if entry is None or entry.state != "loading":
            return []
        entry.state = "stopping" if entry.stop_wanted else "ready"
        entry.idle_since = now
        return self._unload_if_stopping(model, entry)

    def load_failed(self, model: str, now: float) -> None:
        """The load failed for a reason that the worker told."""
        if self.state(model) == "loading":
            del self._entries[model]

    def load_crashed(self, model: str, now: float, why: str) -> None:
        """The worker died while loading it. It is tried again when somebody asks, or failed."""
        self.crashed(model, now, why)
        self._entries.pop(model, None)

    def crashed(self, model: str, now: float, why: str) -> list[Effect]:
        """Its worker died, and with it what ran there. It is loaded again after a pause, or failed."""
        entry = self._entries.pop(model, None)
        trouble = self._trouble.setdefault(model, _Trouble())
        trouble.crashes, trouble.why, trouble.at = trouble.crashes + 1, why, now
        if trouble.crashes >= CRASHES_MAX or entry is None or entry.stop_wanted or entry.unloading:
            return []
        self._entries[model] = _Entry("loading")
        return [Load(model, BACKOFF_S * 2.0 ** (trouble.crashes - 1))]

    def answered(self, model: str) -> None:
        """A whole answer came from it: earlier crashes are forgotten."""
        self._trouble.pop(model, None)

    def started(self, model: str, now: float) -> None:
        """A request runs on it."""
        if (entry := self._entries.get(model)) is not None:
            entry.running += 1

    def finished(self, model: str, now: float) -> list[Effect]:
        """A request ended."""
        entry = self._entries.get(model)
        if entry is None:
            return []
        entry.running = max(0, entry.running - 1)
        entry.idle_since = now
        return self._unload_if_stopping(model, entry)

    def stop(self, model: str, now: float) -> list[Effect]:
        """Unload it when the last request has ended; no new ones until then."""
        entry = self._entries.get(model)
        if entry is None:
            return []
        entry.stop_wanted = True
        if entry.state == "ready":
            entry.state = "stopping"
        return self._unload_if_stopping(model, entry)

    def _unload_if_stopping(self, model: str, entry: _Entry) -> list[Effect]:
        if entry.state != "stopping" or entry.running or entry.unloading:
            return []
        entry.unloading = True
        return [Unload(model)]

    def unloaded(self, model: str, now: float) -> None:
        """It is gone. Late, after a crash while it was unloaded, this says nothing about the load that came since."""
        entry = self._entries.get(model)
        if entry is not None and entry.unloading:
            del self._entries[model]

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: unload what was idle for keep_alive."""
        if self._keep_alive_s < 0:
            return []
        effects: list[Effect] = []
        for model, entry in self._entries.items():
            if entry.state == "ready" and not entry.running and now - entry.idle_since >= self._keep_alive_s:
                entry.state = "stopping"
                effects += self._unload_if_stopping(model, entry)
        return effects

    def evict(self, now: float) -> list[Effect]:
        """Memory is short: unload the model that was idle for longest. Nothing when all are busy."""
        idle = [
            (entry.idle_since, model)
            for model, entry in self._entries.items()
            if entry.state == "ready" and not entry.running
        ]
        if not idle:
            return []
        _, model = min(idle)
        return self.stop(model, now)

    def expires_in_s(self, model: str, now: float) -> float | None:
        """Seconds until it is unloaded when nobody asks; None: never. A busy model has the whole keep_alive."""
        entry = self._entries.get(model)
        if entry is None or self._keep_alive_s < 0:
            return None
        if entry.running or entry.state == "loading":
            return self._keep_alive_s
        return max(0.0, entry.idle_since + self._keep_alive_s - now)
