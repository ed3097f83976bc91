"""What goes wrong for a while, and how long to wait before the next try.

Two kinds of trouble: a lasting cause is an `LlmlbError` and ends a pull; a passing one is a `Passing`, which never
leaves this package, and is tried again until it is over or someone cancels. There is no limit to the tries.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

FIRST_S, MOST_S = 1.0, 60.0
MAX_RETRY_AFTER_S = 3600.0

_RATE_LIMIT = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)')
"""The header ``ratelimit: "api";r=0;t=55``: nothing remains, for 55 s. Source: draft-ietf-httpapi-ratelimit-headers."""


class Passing(Exception):
    """A failure that may be over soon. ``reason`` is for people; ``retry_after_s`` is the server's wish, if any."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


def passes(status: int) -> bool:
    """True for an HTTP status that may be another one soon."""
    return status in (408, 425, 429) or status >= 500


def retry_after_s(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds a server asks to wait: Retry-After in seconds or as a date, or a rate limit's reset. At most an hour."""
    text = next((value.strip() for name, value in headers.items() if name.lower() == "retry-after"), "")
    seconds: float | None = None
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    elif text:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now()
        except ValueError:
            seconds = None
    if seconds is None:
        limit = next((value for name, value in headers.items() if name.lower() == "ratelimit"), "")
        match = _RATE_LIMIT.search(limit)
        seconds = float(match[1]) if match else None
    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


class Backoff:
    """Waiting times of several tries at once: 1 s, 2 s, 4 s … 60 s, each times 0.5 to 1; Retry-After is a minimum.

    Tries that were under way together and fail together count once. Thread-safe.
    """

    def __init__(self, first_s: float = FIRST_S, most_s: float = MOST_S, now: Callable[[], float] = time.monotonic):
        self._first_s, self._most_s, self._now = first_s, most_s, now
        self._lock = threading.Lock()
        self._failures = 0
        self._counted_at = float("-inf")
        self._not_before = float("-inf")

    def failed(self, started_at: float, retry_after_s: float | None = None) -> float:
        """Seconds to wait after a try that began at ``started_at`` has failed."""
        with self._lock:
            now = self._now()
            if started_at >= self._counted_at:
                self._counted_at = now
                self._failures += 1
                whole = min(self._most_s, self._first_s * 2.0 ** min(self._failures - 1, 16))
                self._not_before = max(self._not_before, now + whole * random.uniform(0.5, 1.0))
            if retry_after_s is not None:
                self._not_before = max(self._not_before, now + retry_after_s + random.uniform(0, 0.1 * self._first_s))
            return max(0.0, self._not_before - now)

    def wait_s(self) -> float:
        """Seconds until the next try is allowed."""
        with self._lock:
            return max(0.0, self._not_before - self._now())

    def progressed(self) -> None:
        """Bytes came: the next failure is a first one."""
        with self._lock:
            self._failures = 0
