"""Bodies of very many small parts: refused before each of them becomes an object at every stop of its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmlb.router.gateway.openai_embeddings_schema import MAX_TOKENS
from llmlb.router.gateway.openai_messages import MAX_PARTS
from tests.unit.gateway.scripted import Scripted, delta, end, serving

TEXT = {"type": "text", "text": "x"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def chat(*messages: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 1, "messages": list(messages)}


def responses(*items: Any) -> dict[str, Any]:
    return {"model": "m", "store": False, "input": list(items)}


@pytest.mark.parametrize("given", [[1] * (MAX_TOKENS + 1), [[1] * (MAX_TOKENS // 2)] * 3])
async def test_too_many_token_ids_are_a_bad_request(tmp_path: Path, given: list[Any]) -> None:
    scripted = Scripted()
    async with serving(tmp_path, scripted) as (http, _):
        answer = await http.post("/v1/embeddings", json={"model": "m", "input": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"input: at most {MAX_TOKENS} token ids"
    assert scripted.begun == []


IN = {"type": "input_text", "text": "x"}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": [IN] * MAX_PARTS}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [TEXT] * MAX_PARTS}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(user(*[TEXT] * (MAX_PARTS + 1)))),
        (CHAT, chat(*[user(TEXT, TEXT)] * (MAX_PARTS // 2 + 1))),
        (CHAT, chat({"role": "assistant", "tool_calls": [CALL] * (MAX_PARTS + 1)}, user(TEXT))),
        (MESSAGES, chat(user(*[TEXT] * (MAX_PARTS + 1)))),
        (MESSAGES, chat(user(RESULT))),
        (RESPONSES, responses(user(*[IN] * (MAX_PARTS + 1)))),
        (RESPONSES, responses(user(*[IN] * MAX_PARTS), OUTPUT)),
    ],
)
async def test_too_many_parts_are_a_bad_request_that_names_the_field(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    scripted = Scripted()
    async with serving(tmp_path, scripted) as (http, _):
        answer = await http.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert f"at most {MAX_PARTS} parts" in error["message"]
    assert error.get("param", "messages") in ("messages", "input")
    assert scripted.begun == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(user(*[TEXT] * MAX_PARTS))),
        (MESSAGES, chat(user(*[TEXT] * MAX_PARTS))),
        (RESPONSES, responses(user(*[IN] * MAX_PARTS))),
    ],
)
async def test_as_many_as_are_allowed_are_answered(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async with serving(tmp_path, Scripted(lambda request: [delta("a"), end()])) as (http, _):
        assert (await http.post(path, json=body)).status_code == 200
