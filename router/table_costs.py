"""What a request costs on one node, in seconds: the arithmetic of placement, and what stands in for the unmeasured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

TYPICAL_PREFILL_TPS = 1000.0
TYPICAL_DECODE_TPS = 40.0
"""Of a node while none has measured this model: a small model on a small GPU. Optimistic on purpose, so that cold nodes
are not woken for a queue that may well be short."""
TYPICAL_LOAD_S = 10.0
"""While nobody has loaded this model yet: some gigabytes from a disk."""
TYPICAL_PROMPT_TOKENS = 256.0
TYPICAL_ANSWER_TOKENS = 128.0
"""Of a request while none has ended."""
PREFILL_SHARE = 0.25
"""How much slower a prompt is computed on a node whose slots are all busy: chunks take turns with decode steps."""
DECODE_SHARE = 0.01
"""How much of the time of an answer counts on a node whose slots are all busy. Tiny, as it delays no first token: it
only spreads requests over free nodes, by their decode speed, and must not outweigh a warm prefix."""
SMOOTHING = 0.05
"""Weight of the newest request in the usual length of requests."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens a second."""

    prefill: float
    decode: float


class Weights(NamedTuple):
    """Cost of a request on a node: ``fixed_s + prompt tokens * prefill_s + answer tokens * decode_s``."""

    fixed_s: float
    prefill_s: float
    decode_s: float
    rate: float
    """Requests of usual length that the node ends in a second."""


class Costs:
    """Typical values of one model, and the weights of a node by them."""

    def __init__(self) -> None:
        self.typical = Speeds(TYPICAL_PREFILL_TPS, TYPICAL_DECODE_TPS)
        self.best = self.typical
        self.load_s = TYPICAL_LOAD_S
        self.prompt_tokens = TYPICAL_PROMPT_TOKENS
        self.answer_tokens = TYPICAL_ANSWER_TOKENS
        self._prompt_mean, self._answer_mean = TYPICAL_PROMPT_TOKENS, TYPICAL_ANSWER_TOKENS

    def weigh(self, running: int, slots: int, speeds: Speeds, extra_s: float) -> Weights:
        """Of a node with ``running`` requests on ``slots`` slots. ``extra_s``: load and penalty."""
        service_s = self.service_s(speeds)
        return Weights(*self.busy(running, slots, speeds, extra_s, service_s), slots / service_s)

    def service_s(self, speeds: Speeds) -> float:
        """Seconds that a request of usual length takes."""
        return self.prompt_tokens / speeds.prefill + self.answer_tokens / speeds.decode

    @staticmethod
    def busy(running: int, slots: int, speeds: Speeds, extra_s: float, service_s: float) -> tuple[float, float, float]:
        """The weights that depend on what runs there: fixed_s, prefill_s, decode_s."""
        busy = (running + 1) / slots
        fixed_s = extra_s + (busy - 1.0) * service_s if busy > 1.0 else extra_s
        return fixed_s, (1.0 + PREFILL_SHARE * busy) / speeds.prefill, DECODE_SHARE * busy / speeds.decode

    def finished(self, prompt_tokens: int, answer_tokens: int) -> bool:
        """A request ended with so many tokens. True: the usual length moved so much that weights are out of date."""
        self._prompt_mean += SMOOTHING * (max(1, prompt_tokens) - self._prompt_mean)
        self._answer_mean += SMOOTHING * (max(1, answer_tokens) - self._answer_mean)
        if _near(self._prompt_mean, self.prompt_tokens, 0.2) and _near(self._answer_mean, self.answer_tokens, 0.2):
            return False
        self.prompt_tokens, self.answer_tokens = self._prompt_mean, self._answer_mean
        return True

    def measured(self, prefill: Iterable[float], decode: Iterable[float], load: Iterable[float]) -> bool:
        """All that is measured, over all nodes. True: the typical values moved, weights by them are out of date."""
        fast, slow, load_s = sorted(prefill), sorted(decode), sorted(load)
        typical = Speeds(_middle(fast, TYPICAL_PREFILL_TPS), _middle(slow, TYPICAL_DECODE_TPS))
        best = Speeds(max(fast, default=typical.prefill), max(slow, default=typical.decode))
        typical_load = _middle(load_s, TYPICAL_LOAD_S)
        pairs = (
            (typical.prefill, self.typical.prefill),
            (typical.decode, self.typical.decode),
            (best.prefill, self.best.prefill),
            (best.decode, self.best.decode),
            (typical_load, self.load_s),
        )
        if all(_near(new, old, 0.05) for new, old in pairs):
            return False
        self.typical, self.best, self.load_s = typical, best, typical_load
        return True


def _near(new: float, old: float, share: float) -> bool:
    return abs(new - old) <= share * old


def _middle(values: Sequence[float], otherwise: float) -> float:
    """The upper median, as what is not known is taken to be rather good."""
    return values[len(values) // 2] if values else otherwise


def usable_number(value: float | None) -> float | None:
    """What a node says it measured, or None when it makes no sense (zero, negative, endless, not a number)."""
    return value if value is not None and 0.001 <= value <= 1e9 else None
