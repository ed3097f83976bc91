"""Answers for API keys with limits: counts their tokens, and how many run at the same time.

A key without limits costs one look-up in a dict a request, and nothing a token.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

from llmlb.bus.errors import LlmlbError, RateLimited, Unauthenticated
from llmlb.bus.messages.infer import Delta, Embedded, End, InferRequest, Progress
from llmlb.router.affinity import estimate_tokens
from llmlb.router.call import Call
from llmlb.router.gateway.ports import Inference
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.limits import Meter

Event = Progress | Delta | Embedded | End


class _Tally:
    """Tokens of an answer that its client leaves before the end, which is what says how many there were.

    Else a key has as many as it likes: it reads all but the end, and hangs up.
    """

    def __init__(self, request: InferRequest, call: Call) -> None:
        self._request = request
        self._direct = call.direct
        self._before = 0 if call.direct is None else call.direct.tokens
        self._read = self._prompt = self._answer = 0

    def add(self, event: Delta | Embedded | Progress) -> None:
        if isinstance(event, Delta):
            self._answer += len(event.token_ids) or 1  # without ids: mostly a piece is a token
        elif isinstance(event, Embedded):
            self._read += _about(self._request.inputs[event.index : event.index + 1])
        elif event.phase == "prefill":
            self._read, self._prompt = max(self._read, event.done), max(self._prompt, event.total)

    def left(self, *, failed: bool) -> int:
        """What it has cost: the prompt as far as it was read, and what was answered.

        ``failed``: no fault of the client's, who pays for what it got.
        """
        answer = self._answer + (0 if self._direct is None else self._direct.tokens - self._before)
        if answer:
            return answer + (self._prompt or _about(_texts(self._request)))
        return 0 if failed else self._read


def _revoked() -> LlmlbError:
    return Unauthenticated("the API key of this request was revoked, or its user was removed")


def _texts(request: InferRequest) -> list[str]:
    tools = [tool.name + tool.description + tool.parameters for tool in request.tools]
    return [request.prompt or "", *tools, *(message.content for message in request.messages)]


def _about(inputs: Sequence[str | tuple[int, ...]]) -> int:
    """How many tokens texts have, about: for a prompt whose tokens no node has told."""
    return sum(estimate_tokens(len(one)) if isinstance(one, str) else len(one) for one in inputs)


class Metered:
    """Inference that counts. Several choices of one call are one request."""

    def __init__(self, inner: Inference, directory: Directory) -> None:
        self._inner = inner
        self._directory = directory
        self._running: dict[int, int] = {}
        """Streams under way of each call, by the call's identity."""
        end_of = getattr(inner, "end_of", None)
        if end_of is not None:
            directory.on_gone = lambda who: end_of(who, _revoked)

    def stream(self, request: InferRequest, call: Call | None = None) -> AsyncGenerator[Event, None]:
        """As the dispatcher's. Raises what that does, and RateLimited. Counting a prompt's tokens uses none."""
        counted = call is not None and call.key and not request.count_only
        meter = self._directory.meter(call.key) if call is not None and counted else None
        if call is not None and self._directory.is_gone(call.key):
            raise _revoked()  # since its head was looked at
        if call is None or meter is None:
            return self._inner.stream(request, call)
        return self._counted(request, call, meter)

    async def _counted(self, request: InferRequest, call: Call, meter: Meter) -> AsyncGenerator[Event, None]:
        at = id(call)  # it lives as long as this does
        if at not in self._running and (refused := meter.crowded(time.monotonic())) is not None:
            raise RateLimited(refused)  # others came in since its head was looked at
        self._running[at] = self._running.get(at, 0) + 1
        meter.running += self._running[at] == 1
        tally: _Tally | None = _Tally(request, call)
        failed = False
        try:
            async with contextlib.aclosing(self._inner.stream(request, call)) as events:
                async for event in events:
                    if isinstance(event, End):
                        tally = None
                        meter.used(event.usage.prompt_tokens + event.usage.completion_tokens, time.monotonic())
                    elif tally is not None:
                        tally.add(event)
                    yield event
        except LlmlbError:
            failed = True
            raise
        finally:
            if tally is not None and (tokens := tally.left(failed=failed)):
                meter.used(tokens, time.monotonic())
            self._running[at] -= 1
            if not self._running[at]:
                del self._running[at]
                meter.running -= 1
