"""One request on its way over one or more nodes: what was delivered, who was asked, and its record in the end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from llmlb.bus.errors import EngineCrashed, LlmlbError
from llmlb.bus.messages.infer import Delta, Embedded, End, InferRequest
from llmlb.bus.messages.requests import RequestAttempt, RequestRecord
from llmlb.router.call import Call

BODY_MAX = 64 * 1024
"""Characters of a body that a record keeps."""


@dataclass(slots=True)
class Attempt:
    """One node that was asked."""

    node_id: str
    name: str
    placement: str
    began: float
    tokens: int = 0
    ended: float = 0.0
    reason: str | None = None


@dataclass(slots=True)
class Journey:
    """A request and all that happens to it. Times are of the monotonic clock."""

    request: InferRequest
    call: Call
    gateway_id: str
    tokens: list[int] = field(default_factory=list)
    """Ids of the tokens that the client has."""
    exact: bool = True
    """False: text came without its tokens, so that nobody can go on from there."""
    begun: bool = False
    """True: something went to the client."""
    vectors: set[int] = field(default_factory=set)
    """Inputs whose vector the client has."""
    attempts: list[Attempt] = field(default_factory=list)
    failures: int = 0
    crashes: int = 0
    migrations: int = 0
    exclude: set[str] = field(default_factory=set)
    placed_at: float | None = None
    first_at: float | None = None
    last_at: float = 0.0
    end: End | None = None
    failure: LlmlbError | None = None
    status: Literal["ok", "error", "cancelled"] = "cancelled"
    _text: list[str] = field(default_factory=list)
    _kept: int = 0
    bytes_out: int = 0

    def next_request(self, name: str) -> InferRequest:
        """What the next node is asked: to go on after what the client has."""
        update: dict[str, object] = {"model": name, "attempt": len(self.attempts)}
        if self.tokens:
            update["continuation"] = tuple(self.tokens)
        return self.request.model_copy(update=update)

    def deliver(self, event: Delta | Embedded | End) -> bool:
        """An event came. False: the client has it already."""
        if isinstance(event, Delta):
            now = time.monotonic()
            if self.first_at is None:
                self.first_at = now
            self.last_at = now
            self.begun = True
            if event.token_ids:
                self.tokens += event.token_ids
                self.attempts[-1].tokens += len(event.token_ids)
            elif event.text or event.reasoning or event.tool_calls:
                self.exact = False
            if event.text:
                self.bytes_out += len(event.text) if event.text.isascii() else len(event.text.encode())
                if self._kept < BODY_MAX:
                    self._kept += len(event.text)
                    self._text.append(event.text)
        elif isinstance(event, Embedded):
            if event.index in self.vectors:
                return False
            self.vectors.add(event.index)
            self.first_at = self.first_at or time.monotonic()
            self.begun = True
        else:
            self.end, self.status = event, "ok"
        return True

    def straight(self, delta: Delta) -> bool:
        """Hand a piece to the client at once. False: it can't take it now, and does not have it."""
        direct = self.call.direct
        if direct is None or direct.piece is None:
            return False
        try:
            taken = direct.piece(delta)
        except (TypeError, ValueError):
            return False  # the usual way will say so
        if taken:
            self.deliver(delta)
        return taken

    def failed(self, error: LlmlbError) -> None:
        """The attempt ended before its end."""
        attempt = self.attempts[-1]
        attempt.reason, attempt.ended = error.reason, time.monotonic()
        self.failure = error
        self.crashes += isinstance(error, EngineCrashed)

    def prompt_parts(self) -> list[str]:
        """The texts that the prompt is made of, in order, for finding who computed its beginning."""
        request = self.request
        if request.kind == "completion":
            return [request.prompt or ""]
        parts = [tool.name + tool.description + tool.parameters for tool in request.tools]
        return parts + [f"{message.role}\n{message.content}" for message in request.messages]

    def characters(self) -> int:
        """Length of the prompt."""
        request = self.request
        return len(request.prompt or "") + sum(len(message.content) for message in request.messages)

    def record(self) -> RequestRecord:
        """How it went."""
        now = time.monotonic()
        last = self.attempts[-1] if self.attempts else None
        error = self.failure if self.status == "error" else None
        inter = None
        if self.first_at is not None and len(self.tokens) > 1:
            inter = (self.last_at - self.first_at) * 1000 / (len(self.tokens) - 1)
        call, end = self.call, self.end
        return RequestRecord(
            request_id=self.request.request_id,
            model=self.request.model,
            node_id="" if last is None else last.node_id,
            attempts=max(1, len(self.attempts)),
            placement="" if last is None else last.placement,
            status=self.status,
            reason=None if error is None else error.reason,
            finish_reason=None if end is None else end.finish_reason,
            usage=None if end is None else end.usage,
            timings=None if end is None else end.timings,
            kind=self.request.kind,
            path=call.path,
            streamed=call.streamed,
            key=call.key or None,
            gateway_id=self.gateway_id,
            tried=tuple(_tried(self.attempts, now)),
            migrations=self.migrations,
            queue_ms=((self.placed_at or now) - call.arrived) * 1000,
            inter_token_ms=inter,
            bytes_in=call.bytes_in,
            bytes_out=self.bytes_out,
            request_body=call.body,
            answer="".join(self._text)[:BODY_MAX] or None,
            started_at=time.time() - (now - call.arrived),
            first_token_ms=None if self.first_at is None else (self.first_at - call.arrived) * 1000,
            total_ms=(now - call.arrived) * 1000,
        )


def _tried(attempts: Iterable[Attempt], now: float) -> Iterable[RequestAttempt]:
    for one in attempts:
        yield RequestAttempt(
            node_id=one.node_id,
            placement=one.placement,
            reason=one.reason,
            tokens=one.tokens,
            ms=((one.ended or now) - one.began) * 1000,
        )
