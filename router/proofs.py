"""A breaker's probe that runs well has proved the node long before its answer is over.

While a breaker is half-open one request at a time may go there. An answer can take minutes; so a probe counts as a
success as soon as it brought tokens and lived longer than a fast failure would have.
"""

from __future__ import annotations

from llmlb.router.breaker import FAST_S
from llmlb.router.journey import Attempt
from llmlb.router.loads import Loads


class Proofs:
    """The attempts under way on nodes whose breakers have something to say; few, as a rule none."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads
        self._attempts: list[Attempt] = []

    def began(self, attempt: Attempt) -> None:
        """It was sent."""
        if self._loads.troubled(attempt.node_id, attempt.name):
            self._attempts.append(attempt)

    def ended(self, attempt: Attempt) -> None:
        """It is over, in whatever way. It may never have :meth:`began`."""
        if self._attempts:
            self._attempts = [one for one in self._attempts if one is not attempt]

    def tick(self, now: float) -> None:
        """Time has passed; ``now`` is of the monotonic clock, as the attempts' times are."""
        for attempt in list(self._attempts):
            if attempt.tokens and now - attempt.began >= FAST_S:
                self._loads.succeeded(attempt.node_id, attempt.name)
                self.ended(attempt)
