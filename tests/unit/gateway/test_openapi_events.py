"""The events of streams are those that the OpenAPI document has for them, field by field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.bus.errors import NodeLost
from llmlb.bus.messages.infer import TokenLogprob, ToolCallPiece, TopLogprob
from tests.unit.gateway.auth_rig import Rig
from tests.unit.gateway.documented import document_of, problems
from tests.unit.gateway.scripted import Scripted, Step, delta, end, progress, serving

PROMPT = [{"role": "user", "content": "hi"}]
CHAT = {"model": "m", "messages": PROMPT, "stream_options": {"include_usage": True}, "logprobs": True}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [CHAT, {"model": "m", "messages": PROMPT}],
    "/v1/completions": [{"model": "m", "prompt": "x", "logprobs": 1, "stream_options": {"include_usage": True}}],
    "/v1/responses": [{"model": "m", "input": "x"}, {"model": "m", "input": "x", "reasoning": {"summary": "auto"}}],
    "/v1/messages": [{"model": "m", "messages": PROMPT, "max_tokens": 9, "thinking": {"type": "adaptive"}}],
}
LOGPROB = TokenLogprob(
    token="b", logprob=-0.5, token_bytes=(98,), top=(TopLogprob(token="c", logprob=-1.0, token_bytes=(99,)),)
)
CALL = [
    ToolCallPiece(index=0, id="call_1", name="f", arguments=""),
    ToolCallPiece(index=0, arguments='{"a": 1}'),
]


def script(failing: bool) -> list[Step]:
    pieces: list[Step] = [
        progress(),
        delta(reasoning="hm"),
        delta("a"),
        delta("b", logprobs=(LOGPROB,)),
        *(delta(tool_calls=(piece,)) for piece in CALL),
    ]
    return [*pieces, NodeLost("gone") if failing else end("tool_calls", reasoning_tokens=1, cached_tokens=2)]


def payloads(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def events(home: Path, path: str, body: dict[str, Any], steps: Sequence[Step]) -> list[Any]:
    async with serving(home, Scripted(lambda request: steps)) as (client, _):
        answer: httpx.Response = await client.post(path, json={**body, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        return payloads(answer.text)


@pytest.mark.parametrize("failing", [False, True], ids=["whole", "failing"])
@pytest.mark.parametrize("path", BODIES)
async def test_every_event_is_one_of_those_that_the_document_has(tmp_path: Path, path: str, failing: bool) -> None:
    app = Rig("router", tmp_path).app
    answer = document_of(app)["paths"][path]["post"]["responses"]["200"]["content"]
    data = answer["text/event-stream"]["schema"]["properties"]["data"]
    schema = data.get("anyOf", [data])[0]["contentSchema"]
    for body in BODIES[path]:
        found = await events(tmp_path, path, body, script(failing))
        assert len(found) >= 3
        for event in found:
            assert not problems(app, schema, event, strict=True), event


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_in_one_piece_with_everything_in_it_is_as_documented(tmp_path: Path, path: str) -> None:
    """The fixture of this folder compares; this makes the answer."""
    for body in BODIES[path]:
        whole = {name: value for name, value in body.items() if name != "stream_options"}
        async with serving(tmp_path, Scripted(lambda request: script(failing=False))) as (client, _):
            assert (await client.post(path, json=whole)).status_code == 200
