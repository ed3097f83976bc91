"""Answers for API keys with limits: counts their tokens, and how many run at the same time.

A key without limits costs one look-up in a dict a request, and nothing a token.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator

from llmlb.bus.errors import RateLimited
from llmlb.bus.messages.infer import Delta, Embedded, End, InferRequest, Progress
from llmlb.router.call import Call
from llmlb.router.gateway.ports import Inference
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.limits import Meter

Event = Progress | Delta | Embedded | End


class Metered:
    """Inference that counts. Several choices of one call are one request."""

    def __init__(self, inner: Inference, directory: Directory) -> None:
        self._inner = inner
        self._directory = directory
        self._running: dict[int, int] = {}
        """Streams under way of each call, by the call's identity."""

    def stream(self, request: InferRequest, call: Call | None = None) -> AsyncGenerator[Event, None]:
        """As the dispatcher's. Raises what that does, and RateLimited. Counting a prompt's tokens uses none."""
        counted = call is not None and call.key and not request.count_only
        meter = self._directory.meter(call.key) if call is not None and counted else None
        if call is None or meter is None:
            return self._inner.stream(request, call)
        return self._counted(request, call, meter)

    async def _counted(self, request: InferRequest, call: Call, meter: Meter) -> AsyncGenerator[Event, None]:
        at = id(call)  # it lives as long as this does
        if at not in self._running and (refused := meter.crowded(time.monotonic())) is not None:
            raise RateLimited(refused)  # others came in since its head was looked at
        self._running[at] = self._running.get(at, 0) + 1
        meter.running += self._running[at] == 1
        try:
            async with contextlib.aclosing(self._inner.stream(request, call)) as events:
                async for event in events:
                    if isinstance(event, End):
                        meter.used(event.usage.prompt_tokens + event.usage.completion_tokens, time.monotonic())
                    yield event
        finally:
            self._running[at] -= 1
            if not self._running[at]:
                del self._running[at]
                meter.running -= 1
