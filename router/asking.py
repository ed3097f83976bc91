"""What placement is asked for a request; and which nodes have computed the beginning of its prompt."""

from __future__ import annotations

from collections.abc import Mapping

from llmlb.router.affinity import PrefixMap, estimate_tokens
from llmlb.router.gate import Gate
from llmlb.router.journey import Journey
from llmlb.router.loads import Loads
from llmlb.router.placement import NOTHING, Ask

WORTH_KNOWING = 96
"""Characters of a prompt from which on it is remembered who computed it. Of an embedding none are counted."""
NOBODY: frozenset[str] = frozenset()


class Asking:
    """Remembers only where there is a choice: a model that one node has costs nothing here."""

    def __init__(self, loads: Loads, gate: Gate) -> None:
        self._loads = loads
        self._waiting = gate.waiting
        self._prefixes = PrefixMap()
        loads.on_cold = self._prefixes.forget_node

    def ask(self, journey: Journey) -> Ask:
        """For the next attempt of a request."""
        request = journey.request
        warm: Mapping[str, int] = NOTHING
        characters = journey.characters()
        if self._matters(journey, characters):
            found = self._prefixes.lookup(journey.cuts())
            warm = {node_id: estimate_tokens(shared) for node_id, shared in found.items()}
        return Ask(
            prompt_tokens=estimate_tokens(characters) + len(journey.tokens),
            max_tokens=request.sampling.max_tokens or 0,
            warm=warm,
            exclude=frozenset(journey.exclude) if journey.exclude else NOBODY,
            queued=self._waiting(request.model),
        )

    def answered(self, journey: Journey, node_id: str, now: float) -> None:
        """The node has just computed the prompt of this request."""
        if self._matters(journey, journey.characters()):
            self._prefixes.remember(journey.cuts(), node_id, now)

    def _matters(self, journey: Journey, characters: int) -> bool:
        long = characters >= WORTH_KNOWING or bool(journey.request.tools)
        return long and self._loads.several(journey.request.model)
