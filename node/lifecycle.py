"""Which models are in memory and when they leave it: pure, events and time in, effects out.

::

    absent → loading → ready ⇄ (busy) → stopping → absent
                 ↘ absent (load failed, crash)

A busy model is never unloaded, and no model is loaded twice at a time. ``now`` is seconds of any monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["absent", "loading", "ready", "stopping"]


@dataclass(frozen=True, slots=True)
class Load:
    """Load this model; answer with ``loaded`` or ``load_failed``."""

    model: str


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


class Lifecycle:
    """``keep_alive_s``: idle time before unloading; negative never, 0 as soon as nothing runs."""

    def __init__(self, keep_alive_s: float) -> None:
        self._keep_alive_s = keep_alive_s
        self._entries: dict[str, _Entry] = {}

    def state(self, model: str) -> State:
        entry = self._entries.get(model)
        return "absent" if entry is None else entry.state

    def running(self, model: str) -> int:
        entry = self._entries.get(model)
        return 0 if entry is None else entry.running

    def want(self, model: str, now: float) -> list[Effect]:
        """Somebody asks for it."""
        if model in self._entries:
            return []
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
        self._entries.pop(model, None)

    def crashed(self, model: str, now: float) -> None:
        """Its worker is gone, and with it what ran there."""
        self._entries.pop(model, None)

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
        self._entries.pop(model, None)

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

    def expires_in_s(self, model: str, now: float) -> float | None:
        """Seconds until it is unloaded when nobody asks; None: never. A busy model has the whole keep_alive."""
        entry = self._entries.get(model)
        if entry is None or self._keep_alive_s < 0:
            return None
        if entry.running or entry.state == "loading":
            return self._keep_alive_s
        return max(0.0, entry.idle_since + self._keep_alive_s - now)
