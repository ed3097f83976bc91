"""Signs of life: a request that has nothing to say for a while says that it goes on.

Whoever waits takes silence for a hang: the gateway fails a request that is silent for the stall limit, the agent ends
a worker. An answer can be silent for long although all is well: a tool call goes out when it is whole, neighbours take
their turns with a long prompt, and one call of llama.cpp may take minutes on a small machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal, Protocol

from llmlb.node.engine.interface import Handle, Sink

SILENT_S = 0.5
"""A request that said nothing for so long says that it goes on."""
LOOK_S = 0.25
"""Between two looks at who is silent."""

Phase = Literal["queued", "prefill"]


class Work(Protocol):
    """A request that is here."""

    handle: Handle
    reported_at: float
    """When something of it was sent last, of the monotonic clock."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its input."""

    @property
    def done_tokens(self) -> int:
        """How many of them have been computed."""


class Signs:
    """Says it for the requests of one engine: those that wait and those at work, read at each look.

    Everything runs in the main thread: llama.cpp asks there between two operations of a call.
    """

    def __init__(self, waiting: Iterable[Iterable[Work]], at_work: Iterable[Iterable[Work]]) -> None:
        self._works: list[tuple[Phase, Iterable[Work]]] = [
            *(("queued", works) for works in waiting),
            *(("prefill", works) for works in at_work),
        ]
        self._looked_at = 0.0
        self.sink: Sink | None = None
        """Where they go: what the step that runs has got."""

    def look(self) -> None:
        """After a step."""
        now = time.monotonic()
        if self.sink is not None and now - self._looked_at >= LOOK_S:
            self._say(self.sink, now)

    def going_on(self) -> None:
        """Within a long call: what is said goes out at once. Called for each operation; mostly it is too early."""
        now = time.monotonic()
        if self.sink is not None and now - self._looked_at >= SILENT_S and self._say(self.sink, now):
            self.sink.alive()

    def _say(self, sink: Sink, now: float) -> bool:
        """True when anybody is here."""
        self._looked_at = now
        some = False
        for phase, works in self._works:
            for work in works:
                some = True
                if now - work.reported_at >= SILENT_S:
                    work.reported_at = now
                    total = work.prompt_tokens
                    sink.progress(work.handle, phase, min(work.done_tokens, total), total)
        return some
