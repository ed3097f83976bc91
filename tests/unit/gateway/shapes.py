"""What the tests of the answers' shapes share: an official client at a scripted gateway, and checks by its types."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx
from pydantic import BaseModel

from llmlb.bus.messages.infer import ToolCallPiece
from tests.unit.gateway.scripted import Scripted, Step, delta, end

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class ShapeRig(Generic[C]):
    """A gateway whose answers a test writes, and two clients of it: a plain one and an official one."""

    scripted: Scripted
    http: httpx.AsyncClient
    client: C
    path: str
    body: dict[str, Any]

    def __iter__(self) -> Iterator[Any]:
        yield from (self.scripted, self.http, self.client)

    async def ask(self, script: Sequence[Step], *, stream: bool, more: dict[str, Any]) -> httpx.Response:
        """The answer to the question, with these steps as what comes of it."""
        self.scripted.script = lambda request: script
        body = {**self.body, **more, **({"stream": True} if stream else {})}
        response: httpx.Response = await self.http.post(self.path, json=body)
        assert response.status_code == 200, response.text
        return response

    async def events(
        self, script: Sequence[Step], more: dict[str, Any], read: Callable[[str, dict[str, Any]], Any]
    ) -> list[Any]:
        """Each event as ``read`` makes it of its JSON text and body; its name is its type. Comments are left out."""
        response = await self.ask(script, stream=True, more=more)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        *blocks, rest = response.text.split("\n\n")
        assert rest == ""
        made = []
        for block in blocks:
            if block.startswith(":"):
                continue
            name, data = block.split("\n")
            text = data.removeprefix("data: ")
            body = json.loads(text)
            assert name == f"event: {body['type']}"
            made.append(read(text, body))
        return made


def extras(value: Any) -> Iterator[str]:
    """Fields that the official types don't know, at any depth."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or {}
        for name in type(value).model_fields:
            yield from extras(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            yield from extras(one)


def thinking_and_calls(more_text: str) -> list[Step]:
    """An answer with everything there is: thinking, text with ``more_text`` as its last piece, and two calls."""
    return [
        delta(reasoning="Hm"),
        delta(reasoning="m."),
        delta("\n\n"),
        delta("Let me"),
        delta(" see."),
        delta(more_text),
        delta(tool_calls=(ToolCallPiece(index=0, id="call_a", name="add", arguments='{"x"'),)),
        delta(tool_calls=(ToolCallPiece(index=0, arguments=": 1}"), ToolCallPiece(index=1, id="call_b", name="now"))),
        end("tool_calls", prompt=10, completion=7, cached_tokens=4, reasoning_tokens=2),
    ]
