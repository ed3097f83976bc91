"""What one API key may use: requests and tokens a minute, and requests at the same time. Pure, with the time given.

A bucket of a minute's worth that fills evenly, so that there is no burst of twice as much around a full minute. How
many tokens an answer takes is known when it is over: the bucket may go below nothing then, and the next request waits.
Each gateway process counts for itself.
"""

from __future__ import annotations

import math

from llmlb.bus.messages.identity import KeyLimits

MINUTE_S = 60.0


class Bucket:
    """Holds ``size``, and fills up within a minute."""

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self._level = float(size)
        self._at = now

    def level(self, now: float) -> float:
        self._level = min(float(self.size), self._level + max(0.0, now - self._at) * self.size / MINUTE_S)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take it, whatever is left."""
        self._level = self.level(now) - amount

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until that much is there; 0: now."""
        return max(0.0, (amount - self.level(now)) * MINUTE_S / self.size)


def _resize(old: Bucket | None, size: int | None, now: float) -> Bucket | None:
    return None if size is None else old if old is not None and old.size == size else Bucket(size, now)


class Meter:
    """What one key has used."""

    def __init__(self) -> None:
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._most: int | None = None
        self.running = 0
        """Requests under way."""

    def set(self, limits: KeyLimits, now: float) -> None:
        """The limits in force; what was used stays counted where a limit did not change."""
        self._requests = _resize(self._requests, limits.requests_per_minute, now)
        self._tokens = _resize(self._tokens, limits.tokens_per_minute, now)
        self._most = limits.concurrency

    def refusal(self, now: float) -> tuple[str, float] | None:
        """Why there is no room for another request, and seconds until there is; None: there is."""
        if self._most is not None and self.running >= self._most:
            return f"this key may have {self._most} requests at the same time", 1.0
        for bucket, least, what in ((self._requests, 1.0, "requests"), (self._tokens, 1.0, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s(least, now)) > 0:
                return f"this key may use {bucket.size} {what} a minute", wait_s
        return None

    def begin(self, now: float) -> None:
        """A request was let in."""
        if self._requests is not None:
            self._requests.take(1, now)

    def used(self, tokens: int, now: float) -> None:
        """An answer is over."""
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's. Source: OpenAI's API guide, "Rate limits", "Rate limits in headers"."""
        out: dict[str, str] = {}
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None:
                out[f"x-ratelimit-limit-{what}"] = str(bucket.size)
                out[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.level(now))))
                out[f"x-ratelimit-reset-{what}"] = f"{bucket.wait_s(bucket.size, now):.3f}s"
        return out


def unlimited(limits: KeyLimits) -> bool:
    return limits.requests_per_minute is None and limits.tokens_per_minute is None and limits.concurrency is None
