"""How fast each model is on this node, measured on the answers it gives: what placement expects of it."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

END = b'"type":"llmlb.infer.end.v1"'
"""In the bytes of the last reply of a whole answer."""
PREFILL_MIN = 32
"""Prompt tokens that a prefill must have computed to say something of the speed."""
DECODE_MIN = 8
WEIGHT = 0.2
"""Of the newest answer in the mean."""


@dataclass(slots=True)
class Speed:
    """Tokens a second; None: not measured yet."""

    prefill_tps: float | None = None
    decode_tps: float | None = None
    load_s: float | None = None


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new


class Speeds:
    """By the model's name."""

    def __init__(self) -> None:
        self._of: dict[str, Speed] = {}

    def of(self, name: str) -> Speed:
        return self._of.get(name) or Speed()

    def answered(self, name: str, reply: bytes) -> None:
        """The last reply of an answer, as it goes to the bus."""
        if END not in reply:
            return
        try:
            end = orjson.loads(reply)
            usage, timings = end["usage"], end["timings"]
            computed = usage["prompt_tokens"] - usage["cached_tokens"]
            prefill_s, decode_s = timings["prefill_ms"] / 1000, timings["decode_ms"] / 1000
            tokens = usage["completion_tokens"] - 1
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return
        speed = self._of.setdefault(name, Speed())
        if computed >= PREFILL_MIN and prefill_s > 0:
            speed.prefill_tps = _mean(speed.prefill_tps, computed / prefill_s)
        if tokens >= DECODE_MIN and decode_s > 0:
            speed.decode_tps = _mean(speed.decode_tps, tokens / decode_s)
