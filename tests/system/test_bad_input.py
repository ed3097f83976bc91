"""What a client can get wrong: each gets the right 4xx in the one error body, and nothing of it reaches an engine."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cluster import Process, cluster

GOOD: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def image(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


def deep_tool() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A cluster that gets bad requests only; at the end its engine was never started."""
    with cluster(tmp_path_factory.mktemp("bad")) as it:
        process = it.start("serve", home="one").wait_ready()
        yield process
        assert httpx.get(f"{process.node_url}/v0/ps").json()["models"] == [], "a bad request reached an engine"
        assert "Traceback" not in process.output()


def changed(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


BAD: list[tuple[str, Any, int, str | None]] = [
    ("malformed", b'{"model": "smollm2", ', 400, None),
    ("empty body", b"", 400, None),
    ("not an object", b"[1, 2]", 400, None),
    ("a bare string", b'"hi"', 400, None),
    ("invalid utf-8", b'{"model": "\xff\xfe"}', 400, None),
    ("deep nesting", b"[" * 100_000, 400, None),
    ("deep content", b'{"model":"smollm2","messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400, None),
    ("no model", {"messages": GOOD["messages"]}, 400, "model"),
    ("empty model", changed(model=""), 400, "model"),
    ("null model", changed(model=None), 400, "model"),
    ("model of wrong type", changed(model=7), 400, "model"),
    ("model too long", changed(model="x" * 300), 400, "model"),
    ("unknown model", changed(model="nobody/has-this"), 404, "model"),
    ("model with line breaks", changed(model="a\r\nPUB x"), 404, "model"),
    ("no messages", {"model": "smollm2"}, 400, "messages"),
    ("empty messages", changed(messages=[]), 400, "messages"),
    ("messages of wrong type", changed(messages="hi"), 400, "messages"),
    ("a message of wrong type", changed(messages=["hi"]), 400, "messages.0"),
    ("unknown role", changed(messages=[{"role": "wizard", "content": "x"}]), 400, "messages.0.role"),
    ("no content", changed(messages=[{"role": "user"}]), 400, "messages.0.content"),
    ("content of wrong type", changed(messages=[{"role": "user", "content": 7}]), 400, "messages.0.content"),
    ("an image that is none", changed(messages=[image("data:,")]), 400, "messages.0.content.0"),
    ("temperature too high", changed(temperature=3), 400, "temperature"),
    ("temperature below zero", changed(temperature=-0.1), 400, "temperature"),
    ("temperature as text", changed(temperature="1"), 400, "temperature"),
    ("temperature as boolean", changed(temperature=True), 400, "temperature"),
    ("top_p below zero", changed(top_p=-0.1), 400, "top_p"),
    ("top_p too high", changed(top_p=1.5), 400, "top_p"),
    ("max_tokens of zero", changed(max_tokens=0), 400, "max_tokens"),
    ("max_tokens as a fraction", changed(max_tokens=1.5), 400, "max_tokens"),
    ("max_tokens as text", changed(max_tokens="5"), 400, "max_tokens"),
    ("huge max_tokens", changed(max_tokens=10**12), 400, "max_tokens"),
    ("too many stop texts", changed(stop=["a"] * 65), 400, "stop"),
    ("an empty stop text", changed(stop=[""]), 400, "stop"),
    ("stop of wrong type", changed(stop=5), 400, "stop"),
    ("seed of wrong type", changed(seed="x"), 400, "seed"),
    ("seed too large", changed(seed=2**70), 400, "seed"),
    ("stream of wrong type", changed(stream="yes"), 400, "stream"),
    ("stream_options alone", changed(stream_options={"include_usage": True}), 400, "stream_options"),
    ("too many choices", changed(n=129), 400, "n"),
    ("n of zero", changed(n=0), 400, "n"),
    ("tools of wrong type", changed(tools={"name": "f"}), 400, "tools"),
    ("a tool without a function", changed(tools=[{"type": "function"}]), 400, "tools.0.function"),
    (
        "a tool with a bad name",
        changed(tools=[{"type": "function", "function": {"name": "a b"}}]),
        400,
        "tools.0.function.name",
    ),
    ("a tool of unknown type", changed(tools=[{"type": "web"}]), 400, "tools.0.type"),
    (
        "parameters of wrong type",
        changed(tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]),
        400,
        "tools.0.function.parameters",
    ),
    ("tool_choice without tools", changed(tool_choice="required"), 400, "tool_choice"),
    ("unknown tool_choice", changed(tools=TOOLS, tool_choice="maybe"), 400, "tool_choice"),
    (
        "a choice that is no tool",
        changed(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "g"}}),
        400,
        "tool_choice",
    ),
    ("functions", changed(functions=[{"name": "f"}]), 400, "functions"),
    ("logprobs of wrong type", changed(logprobs=5), 400, "logprobs"),
    ("top_logprobs alone", changed(top_logprobs=5), 400, "top_logprobs"),
    ("too many top_logprobs", changed(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    ("logit_bias by text", changed(logit_bias={"the": 1}), 400, "logit_bias"),
    ("logit_bias too large", changed(logit_bias={"5": 101}), 400, "logit_bias"),
    ("logit_bias of wrong type", changed(logit_bias={"5": "x"}), 400, "logit_bias.5"),
    ("unknown response_format", changed(response_format={"type": "xml"}), 400, "response_format.type"),
    ("no schema", changed(response_format={"type": "json_schema"}), 400, "response_format.json_schema"),
    ("an image behind http", changed(messages=[image("http://127.0.0.1:9/a.png")]), 400, "messages.0.content.0"),
    ("an image of another type", changed(messages=[image("data:image/tiff;base64,AAAA")]), 400, "messages.0.content.0"),
    ("an image in bad base64", changed(messages=[image("data:image/png;base64,!!")]), 400, "messages.0.content.0"),
    ("an empty image", changed(messages=[image("data:image/png;base64,")]), 400, "messages.0.content.0"),
    ("an image from a file", changed(messages=[image("file:///etc/passwd")]), 400, "messages.0.content.0"),
    ("a schema too deep", changed(tools=[deep_tool()]), 400, None),
]


def check(response: httpx.Response, status: int, param: str | None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["code"], str)
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("gateway", ["router", "node"])
@pytest.mark.parametrize(("body", "status", "param"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_answered(untouched: Process, gateway: str, body: Any, status: int, param: str | None) -> None:
    url = untouched.url if gateway == "router" else untouched.node_url
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    check(httpx.post(f"{url}/v1/chat/completions", content=data), status, param)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/owner/none:Q8_0", 404),
        ("GET", "/v1/models/..%2F..%2Fetc%2Fpasswd", 404),
        ("POST", "/v1/completions", 400),
    ],
)
def test_a_wrong_address_is_answered_in_the_same_body(untouched: Process, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{untouched.url}{path}")
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_of_more_than_20_mb_is_too_large(untouched: Process) -> None:
    body = json.dumps(changed(messages=[{"role": "user", "content": "x" * 20_000_000}])).encode()
    check(httpx.post(f"{untouched.url}/v1/chat/completions", content=body), 413, None)


def test_a_body_of_more_than_20_mb_in_pieces_is_too_large(untouched: Process) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(310):
            yield b"x" * 65536

    try:
        response = httpx.post(f"{untouched.url}/v1/chat/completions", content=pieces())
    except httpx.TransportError:
        return  # the connection was cut while we still sent: refused as well
    check(response, 413, None)


def test_what_is_not_http_gets_an_answer_and_no_traceback(untouched: Process) -> None:
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", untouched.router_port), timeout=5) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(65536)
    assert "Traceback" not in untouched.output()


def test_bad_bodies_of_our_own_routes(untouched: Process) -> None:
    url = f"{untouched.node_url}/v0/models/stop"
    for body, status in ((b"{}", 400), (b'{"model": "smollm2", "force": 1}', 400), (b'{"model": "a b"}', 400)):
        assert httpx.post(url, content=body).status_code == status
    assert httpx.post(url, json={"model": "nobody/has"}).status_code == 404
    assert httpx.post(url, json={"model": "smollm2"}).status_code == 409
    assert httpx.post(f"{untouched.url}/v0/nodes/zz/approve").status_code == 404


def test_a_request_id_is_echoed_unless_it_is_unfit(untouched: Process, tmp_path: Path) -> None:
    echoed = httpx.get(f"{untouched.url}/health", headers={"x-request-id": "abc-123"})
    assert echoed.headers["x-request-id"] == "abc-123"
    made = httpx.get(f"{untouched.url}/health", headers={"x-request-id": "a b\tc"})
    assert len(made.headers["x-request-id"]) == 32
