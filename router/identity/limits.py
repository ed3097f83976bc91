"""What one API key may use: requests and tokens a minute, and requests at the same time. Pure, with the time given.

A bucket of a minute's worth that fills evenly, so that there is no burst of twice as much around a full minute. How
many tokens an answer takes is known when it is over: the bucket may go below nothing then, and the next request waits.
Gateways tell each other what they took (:mod:`llmlb.router.identity.sharing`), and take it here too: so the buckets of
a key are the same everywhere, but for what is on its way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from llmlb.bus.messages.identity import KeyLimits, KeyUse

MINUTE_S = 60.0
RUNNING_FRESH_S = 3.0
"""What another gateway said of its requests under way counts for so long; it says it each second."""


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
    """What one key has used, here and elsewhere. ``changed`` is called when there is something to tell."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._most: int | None = None
        self._running = 0
        self._elsewhere: dict[str, tuple[int, float]] = {}
        """Requests under way at other gateways, and when that was heard; of those that have some."""
        self._untold = [0, 0]
        """Requests and tokens that the other gateways do not know of."""
        self._changed = changed

    @property
    def running(self) -> int:
        """Requests under way here."""
        return self._running

    @running.setter
    def running(self, count: int) -> None:
        if count != self._running:
            self._running = count
            self._changed()

    def set(self, limits: KeyLimits, now: float) -> None:
        """The limits in force; what was used stays counted where a limit did not change."""
        self._requests = _resize(self._requests, limits.requests_per_minute, now)
        self._tokens = _resize(self._tokens, limits.tokens_per_minute, now)
        self._most = limits.concurrency

    def refusal(self, now: float) -> tuple[str, float] | None:
        """Why there is no room for another request, and seconds until there is; None: there is."""
        if (crowded := self.crowded(now)) is not None:
            return crowded, 1.0
        for bucket, least, what in ((self._requests, 1.0, "requests"), (self._tokens, 1.0, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s(least, now)) > 0:
                return f"this key may use {bucket.size} {what} a minute", wait_s
        return None

    def crowded(self, now: float) -> str | None:
        """Why there is no room for another request at the same time; None: there is."""
        if self._most is not None and self._running + self.elsewhere(now) >= self._most:
            return f"this key may have {self._most} requests at the same time"
        return None

    def begin(self, now: float) -> None:
        """A request was let in."""
        if self._requests is not None:
            self._requests.take(1, now)
            self._untold[0] += 1
            self._changed()

    def used(self, tokens: int, now: float) -> None:
        """An answer is over."""
        if self._tokens is not None:
            self._tokens.take(tokens, now)
            self._untold[1] += tokens
            self._changed()

    def elsewhere(self, now: float) -> int:
        """Requests under way at other gateways. One that was not heard for a while may have died with its own."""
        if not self._elsewhere:
            return 0
        self._elsewhere = {who: said for who, said in self._elsewhere.items() if now - said[1] < RUNNING_FRESH_S}
        return sum(count for count, _ in self._elsewhere.values())

    def tell(self, key_id: str, now: float) -> KeyUse:
        """What the other gateways are to know; see :meth:`told`."""
        requests, tokens = self._untold
        return KeyUse(
            key_id=key_id,
            requests=requests,
            tokens=tokens,
            running=self._running,
            requests_left=None if self._requests is None else self._requests.level(now),
            tokens_left=None if self._tokens is None else self._tokens.level(now),
        )

    def told(self, use: KeyUse) -> None:
        """They were told so."""
        self._untold[0] = max(0, self._untold[0] - use.requests)
        self._untold[1] = max(0, self._untold[1] - use.tokens)

    def heard(self, gateway_id: str, use: KeyUse, now: float, *, catch_up: bool) -> None:
        """Another gateway says what it took. ``catch_up``: this one missed something, so its level counts as well.

        That level is never too low: what its sender does not know of can only make it lower.
        """
        for bucket, taken, left in (
            (self._requests, use.requests, use.requests_left),
            (self._tokens, use.tokens, use.tokens_left),
        ):
            if bucket is not None:
                bucket.take(taken, now)
                if catch_up and left is not None:
                    bucket.take(max(0.0, bucket.level(now) - left), now)
        self._elsewhere.pop(gateway_id, None)
        if use.running and self._most is not None:
            self._elsewhere[gateway_id] = (use.running, now)

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
