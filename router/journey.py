"""One request on its way over one or more nodes: what was delivered, who was asked, and its record in the end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Literal

from llmlb.bus.errors import EngineCrashed, LlmlbError
from llmlb.bus.messages.base import changed
from llmlb.bus.messages.infer import Delta, Embedded, End, InferRequest, WrittenMessages
from llmlb.router.affinity import Cuts
from llmlb.router.call import Call
from llmlb.router.placement import Placement
from llmlb.router.record import Called, Record, Tried
from llmlb.router.redaction import BODY_MAX, kept_text


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

    def tried(self, now: float) -> Tried:
        """For the record."""
        return Tried(self.node_id, self.placement, self.reason, self.tokens, ((self.ended or now) - self.began) * 1000)


@dataclass(slots=True)
class Journey:
    """A request and all that happens to it. Times are of the monotonic clock."""

    request: InferRequest
    call: Call
    gateway_id: str
    tokens: list[int] = field(default_factory=list)
    """Ids of the tokens that the client has."""
    unheard_of: bool = False
    """Nobody here knows the model: counted, and not recorded."""
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
    place: tuple[Placement, str] | None = None
    """What the wait in the queue brought: a node, and the model's name there."""
    placed_at: float | None = None
    first_at: float | None = None
    last_at: float = 0.0
    end: End | None = None
    failure: LlmlbError | None = None
    status: Literal["ok", "error", "cancelled"] = "cancelled"
    _text: list[str] = field(default_factory=list)
    _thoughts: list[str] = field(default_factory=list)
    _calls: dict[int, Called] = field(default_factory=dict)
    _kept: int = 0
    """Characters of text, thinking and calls that are kept for the record."""
    bytes_out: int = 0
    _characters: int | None = None
    _cuts: Cuts | None = None

    def next_request(self, name: str) -> InferRequest:
        """What the next node is asked: to go on after what the client has."""
        if not self.attempts and name == self.request.model:
            return self.request
        sent = changed(self.request, model=name, attempt=len(self.attempts))
        return changed(sent, continuation=tuple(self.tokens)) if self.tokens else sent

    def deliver(self, event: Delta | Embedded | End) -> bool:
        """An event came. False: the client has it already."""
        if isinstance(event, Delta):
            self._delivered(event)
        elif isinstance(event, Embedded):
            if event.index in self.vectors:
                return False
            self.vectors.add(event.index)
            self.first_at = self.first_at or time.monotonic()
            self.begun = True
        else:
            self.end, self.status = event, "ok"
        return True

    def _delivered(self, delta: Delta) -> None:
        self.last_at = time.monotonic()
        if self.first_at is None:
            self.first_at = self.last_at
            self.begun = True
        if delta.token_ids:
            self.tokens += delta.token_ids
            self.attempts[-1].tokens += len(delta.token_ids)
        elif delta.text or delta.reasoning or delta.tool_calls:
            self.exact = False
        if text := delta.text:
            self.bytes_out += len(text) if text.isascii() else len(text.encode())
            if self._kept < BODY_MAX:
                self._kept += len(text)
                self._text.append(text)
        if delta.reasoning or delta.tool_calls:
            self._keep_others(delta)

    def _keep_others(self, delta: Delta) -> None:
        """What is no text, for the record."""
        if delta.reasoning and self._kept < BODY_MAX:
            self._kept += len(delta.reasoning)
            self._thoughts.append(delta.reasoning)
        for piece in delta.tool_calls:
            if self._kept < BODY_MAX:
                self._kept += len(piece.arguments) + len(piece.name or "")
                call = self._calls.setdefault(piece.index, Called(piece.id or "", piece.name or "", ""))
                call.arguments += piece.arguments

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
            self._delivered(delta)
            direct.tokens += len(delta.token_ids) or 1
        return taken

    def failed(self, error: LlmlbError) -> None:
        """The attempt ended before its end."""
        attempt = self.attempts[-1]
        attempt.reason, attempt.ended = error.reason, time.monotonic()
        self.failure = error
        self.crashes += isinstance(error, EngineCrashed)

    def cuts(self) -> Cuts:
        """Of the prompt, for finding who computed its beginning."""
        if self._cuts is None:
            self._cuts = Cuts(self.request.model, _prompt_parts(self.request))
        return self._cuts

    def characters(self) -> int:
        """Length of the prompt."""
        if self._characters is None:
            request, messages = self.request, self.request.messages
            if isinstance(messages, WrittenMessages):
                self._characters = messages.characters
            else:
                self._characters = len(request.prompt or "") + sum([len(message.content) for message in messages])
        return self._characters

    def forget_texts(self) -> None:
        """The request was placed: what is asked of its texts from now on is known, or they are read again."""
        messages = self.request.messages
        if isinstance(messages, WrittenMessages):
            if self._cuts is not None:
                self._cuts.finish()
            messages.forget()

    def record(self) -> Record:
        """How it went."""
        now = time.monotonic()
        call, end, request, asked = self.call, self.end, self.request, self.attempts
        last = asked[-1] if asked else None
        error = self.failure if self.status == "error" else None
        inter = None
        arrived, first_at = call.arrived, self.first_at
        if first_at is not None and len(self.tokens) > 1:
            inter = (self.last_at - first_at) * 1000 / (len(self.tokens) - 1)
        return Record(
            request_id=request.request_id,
            client_request_id=call.client_request_id,
            model=request.model,
            node_id="" if last is None else last.node_id,
            attempts=len(asked) or 1,
            placement="" if last is None else last.placement,
            status=self.status,
            reason=None if error is None else error.reason,
            finish_reason=None if end is None else end.finish_reason,
            usage=None if end is None else end.usage,
            timings=None if end is None else end.timings,
            kind=request.kind,
            path=call.path,
            streamed=call.streamed,
            key=call.key or None,
            gateway_id=self.gateway_id,
            tried=[one.tried(now) for one in asked],
            migrations=self.migrations,
            queue_ms=((self.placed_at or now) - arrived) * 1000,
            inter_token_ms=inter,
            bytes_in=call.bytes_in,
            bytes_out=self.bytes_out,
            request_body=call.body if type(call.body) is str else None,
            request_json=call.body if type(call.body) is bytes else None,
            answer=kept_text("".join(self._text)) if self._text else None,
            reasoning=kept_text("".join(self._thoughts)) if self._thoughts else None,
            tool_calls=self._called() if self._calls else (),
            started_at=time.time() - (now - arrived),
            first_token_ms=None if first_at is None else (first_at - arrived) * 1000,
            total_ms=(now - arrived) * 1000,
        )

    def _called(self) -> list[Called]:
        """The tools that were called, for the record."""
        return [replace(one, arguments=kept_text(one.arguments)) for one in self._calls.values()]


def _prompt_parts(request: InferRequest) -> list[str]:
    """The texts that a prompt is made of, in order."""
    if request.kind == "completion":
        return [request.prompt or ""]
    parts = [tool.name + tool.description + tool.parameters for tool in request.tools]
    for message in request.messages:
        parts += (message.role, message.content)
    return parts
