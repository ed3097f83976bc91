"""The history of every route that asks a model: what was asked and answered is there, secrets and images are not."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster, Process, wait_until

MODEL = "smollm2"
KEY = "sk_" + "Zq9-" * 11
QUESTION = f"What is the capital of Japan? My key is {KEY}."
ENDLESS = f"Count: 1, 2, 3, 4, 5, 6, 7, 8. {KEY}"
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CHAT, PLAIN, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"


def body_of(path: str, text: str = QUESTION, most: int = 12) -> dict[str, Any]:
    """A question to this route."""
    body: dict[str, Any] = {"model": MODEL, "temperature": 0}
    if path == PLAIN:
        return {**body, "prompt": text, "max_tokens": most}
    if path.startswith("/v1/responses"):
        return {**body, "input": text, "max_output_tokens": most}
    if path == "/v1/embeddings":
        return {"model": MODEL, "input": text}
    return {**body, "messages": [{"role": "user", "content": text}], "max_tokens": most}


def recorded(process: Process, response: httpx.Response) -> dict[str, Any]:
    """The record of the request that had this answer."""
    url = f"{process.url}/v0/requests/{response.headers['x-request-id']}"

    def found() -> httpx.Response | None:
        answer = httpx.get(url, timeout=10)
        return answer if answer.status_code == 200 else None

    answer = wait_until(found, 20, "the record is there")
    assert KEY not in answer.text
    assert KEY[8:] not in answer.text
    record: dict[str, Any] = answer.json()
    return record


def text_of(path: str, response: httpx.Response, *, streamed: bool) -> str:
    """The text that the client got."""
    if not streamed:
        body = response.json()
        if path == RESPONSES:
            return "".join(part["text"] for item in body["output"] for part in item["content"])
        if path == MESSAGES:
            return "".join(block["text"] for block in body["content"])
        choice = body["choices"][0]
        return str(choice["text"] if path == PLAIN else choice["message"]["content"])
    text = ""
    for line in response.text.splitlines():
        if line.startswith("data: {"):
            text += _piece(path, json.loads(line.removeprefix("data: ")))
    return text


def _piece(path: str, event: dict[str, Any]) -> str:
    if path == RESPONSES:
        return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""
    if path == MESSAGES:
        return str(event["delta"]["text"]) if event["type"] == "content_block_delta" else ""
    choices = event["choices"]
    if not choices:
        return ""
    return str(choices[0]["text"] if path == PLAIN else choices[0]["delta"].get("content") or "")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", [CHAT, PLAIN, RESPONSES, MESSAGES])
@pytest.mark.parametrize("gateway", ["router", "node"])
def test_a_record_has_the_whole_text_and_the_usage(
    served: tuple[Cluster, Process], gateway: str, path: str, streamed: bool
) -> None:
    process = served[1]
    url = process.url if gateway == "router" else process.node_url
    response = httpx.post(url + path, json={**body_of(path), "stream": streamed}, timeout=60)
    assert response.status_code == 200, response.text
    record = recorded(process, response)
    assert record["answer"] == text_of(path, response, streamed=streamed).replace(KEY, "(cut)")
    assert record["answer"]
    assert (record["status"], record["streamed"], record["path"]) == ("ok", streamed, path)
    assert "What is the capital of Japan? My key is (cut)" in record["request_body"]
    assert record["usage"]["prompt_tokens"] > 0
    assert 0 < record["usage"]["completion_tokens"] <= 12


def test_a_long_body_is_shown_as_it_was_sent(served: tuple[Cluster, Process]) -> None:
    body = {**body_of(CHAT), "messages": [{"role": "user", "content": 'Größe "?"\n' * 1000}]}
    for _ in range(2):  # what looks for secrets in long texts is made ready at the first
        response = httpx.post(served[1].url + CHAT, json=body, timeout=60)
        assert json.loads(recorded(served[1], response)["request_body"]) == body


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/messages/count_tokens", "/v1/responses/input_tokens"])
def test_a_record_of_what_has_no_text_has_its_usage(served: tuple[Cluster, Process], path: str) -> None:
    body = {key: value for key, value in body_of(path).items() if key not in ("max_tokens", "max_output_tokens")}
    response = httpx.post(served[1].url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    record = recorded(served[1], response)
    assert (record["status"], record["answer"], record["path"]) == ("ok", None, path)
    assert record["usage"]["prompt_tokens"] > 0
    assert "My key is (cut)" in record["request_body"]


@pytest.mark.parametrize("path", [CHAT, PLAIN, RESPONSES, MESSAGES])
def test_a_record_of_a_stream_that_its_client_left_has_what_had_come(
    served: tuple[Cluster, Process], path: str
) -> None:
    process = served[1]
    body = {**body_of(path, ENDLESS, 900), "stream": True}
    got = ""
    with httpx.stream("POST", process.url + path, json=body, timeout=60) as response:
        lines = response.iter_lines()
        while len(got) < 4:
            line = next(lines)
            if line.startswith("data: {"):
                got += _piece(path, json.loads(line.removeprefix("data: ")))
    record = recorded(process, response)
    if record["status"] == "ok":  # a model that ended by itself before the connection was closed
        pytest.fail("the answer was to be endless")
    assert record["status"] == "cancelled"
    assert record["answer"].startswith(got)
    assert record["tried"][0]["tokens"] > 0


def test_a_record_has_the_tools_that_were_called(served: tuple[Cluster, Process]) -> None:
    function = {"name": "weather", "description": "The weather of a city.", "parameters": SCHEMA}
    body = {
        **body_of(CHAT, "How is the weather in Rome?", 60),
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    for streamed in (False, True):
        response = httpx.post(served[1].url + CHAT, json={**body, "stream": streamed}, timeout=60)
        (call,) = recorded(served[1], response)["tool_calls"]
        assert call["name"] == "weather"
        assert json.loads(call["arguments"])["city"] in ("Oslo", "Rome")
        assert call["id"] in response.text


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_record_has_no_image_and_no_secret_of_a_tool(served: tuple[Cluster, Process], path: str) -> None:
    url = f"data:image/png;base64,{PIXEL}"
    part: dict[str, Any] = {
        CHAT: {"type": "image_url", "image_url": {"url": url}},
        RESPONSES: {"type": "input_image", "image_url": url},
        MESSAGES: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
    }[path]
    text = {"type": "input_text" if path == RESPONSES else "text", "text": "What is this?"}
    turn = {"role": "user", "content": [part, text]}
    body = {**body_of(path), "metadata": {"user_id": "u", "api_key": "hunter22"}}
    body["input" if path == RESPONSES else "messages"] = [turn]
    response = httpx.post(served[1].url + path, json=body, timeout=60)
    assert response.status_code == 400, "this model sees no images"
    record = recorded(served[1], response)
    assert record["status"] == "error"
    assert "What is this?" in record["request_body"]
    for secret in (PIXEL, PIXEL[:20], PIXEL[-20:], "hunter22"):
        assert secret not in str(record)


def test_credentials_that_were_sent_are_nowhere(served: tuple[Cluster, Process]) -> None:
    sent = {"Authorization": "Bearer sk_header_credential_1", "Cookie": "llmlb_session=cookie_credential_2"}
    response = httpx.post(served[1].url + CHAT, json=body_of(CHAT), headers=sent, timeout=60)
    assert response.status_code == 200
    assert "_credential_" not in str(recorded(served[1], response))
    assert "_credential_" not in served[1].output()
