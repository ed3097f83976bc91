"""What a client calls its request is told to the dispatcher, beside the id that the request has here."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.messages.infer import InferRequest
from llmlb.router.call import Call
from tests.unit.gateway.scripted import Event, Scripted, delta, end, serving

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Noting(Scripted):
    """Notes what it is told of each request."""

    def __init__(self) -> None:
        super().__init__(lambda request: [delta("hi"), end()])
        self.calls: list[Call] = []

    def stream(self, request: InferRequest, call: Any = None) -> AsyncGenerator[Event, None]:
        self.calls.append(call)
        return super().stream(request, call)


@pytest.mark.parametrize(
    ("given", "kept"), [("order-17", "order-17"), (None, None), ("no id\u00e9", None), ("x" * 129, None), ("", None)]
)
async def test_the_id_of_a_client_is_kept_if_it_is_one(tmp_path: Path, given: str | None, kept: str | None) -> None:
    noting = Noting()
    headers = {} if given is None else {b"x-request-id": given.encode()}
    async with serving(tmp_path, noting) as (client, _):
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 200
    assert noting.calls[0].client_request_id == kept
    assert noting.begun[0].request_id != given, "a client may choose the same one twice"


@pytest.mark.parametrize("choices", [1, 2])
async def test_an_answer_without_an_end_is_an_error_however_many_choices_it_has(tmp_path: Path, choices: int) -> None:
    async with serving(tmp_path, Scripted(lambda request: [delta("hi")])) as (client, _):
        answer = await client.post("/v1/chat/completions", json={**CHAT, "n": choices})
    assert answer.status_code == 500
