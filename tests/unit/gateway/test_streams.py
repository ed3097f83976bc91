"""The gateway's HTTP around an answer, with scripted answers: these test framing and failures, not inference."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.bus.errors import ConfigError, EngineCrashed, LlmlbError, QueueFull
from llmlb.bus.messages.infer import Delta, End, InferRequest, Progress, Usage
from llmlb.bus.messages.router import ClusterModel
from llmlb.bus.settings import Settings
from llmlb.router.gateway import answers, auth
from llmlb.router.gateway.app import GatewayServer, build_app
from llmlb.router.gateway.ports import Gateway

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
Step = Progress | Delta | End | LlmlbError | float


class Scripted:
    """Inference, models and readiness as a test says. A number in the script is a pause in seconds."""

    def __init__(self) -> None:
        self.script: list[Step] = []
        self.requests: list[InferRequest] = []
        self.closed = asyncio.Event()
        self.ready = True

    async def stream(self, request: InferRequest, call: object = None) -> AsyncGenerator[Progress | Delta | End, None]:
        self.requests.append(request)
        try:
            for step in self.script:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, LlmlbError):
                    raise step
                else:
                    yield step
        finally:
            self.closed.set()

    def list_models(self) -> tuple[ClusterModel, ...]:
        return ()


def delta(text: str) -> Delta:
    return Delta(request_id="r", seq=1, text=text)


def end() -> End:
    return End(
        request_id="r", seq=2, finish_reason="stop", usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    )


def progress() -> Progress:
    return Progress(request_id="r", seq=1, phase="loading")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[tuple[Scripted, httpx.AsyncClient, GatewayServer]]:
    scripted = Scripted()
    gateway = Gateway(
        role="router",
        settings=Settings.load({}, home=tmp_path),
        version="0",
        inference=scripted,
        models=scripted,
        readiness=scripted,
        router_ops=None,
        node_ops=None,
        node_id=None,
    )
    server = GatewayServer(build_app(gateway))
    await server.start("127.0.0.1", 0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as client:
        yield scripted, client, server
    await server.stop(0.1)


Rig = tuple[Scripted, httpx.AsyncClient, GatewayServer]


async def test_an_error_before_the_first_text_has_its_status_in_streams_too(rig: Rig) -> None:
    scripted, client, _ = rig
    scripted.script = [QueueFull("every slot is taken")]
    for stream in (False, True):
        response = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert response.headers["retry-after"] == "1"


async def test_an_error_after_the_first_text_is_one_typed_event_and_no_done(rig: Rig) -> None:
    scripted, client, _ = rig
    scripted.script = [delta("Hel"), EngineCrashed("the engine worker ended unexpectedly")]
    response = await client.post("/v1/chat/completions", json={**BODY, "stream": True})
    assert response.status_code == 200
    events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line]
    assert events[1]["choices"][0]["delta"]["content"] == "Hel"
    assert events[-1]["error"]["code"] == "engine_crashed"
    assert "[DONE]" not in response.text


async def test_a_long_wait_is_kept_alive_with_comments(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, client, _ = rig
    monkeypatch.setattr(answers, "QUIET_S", 0.1)
    scripted.script = [progress(), 0.2, progress(), 0.01, progress(), delta("x"), end()]
    response = await client.post("/v1/chat/completions", json={**BODY, "stream": True})
    blocks = [block for block in response.text.split("\n\n") if block]
    assert blocks[:2] == [": loading", ": loading"], "none before it takes long, then one for each sign of life"
    assert json.loads(blocks[2][6:])["choices"][0]["delta"]["role"] == "assistant"
    assert blocks[-1] == "data: [DONE]"
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_an_error_after_comments_is_an_event(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, client, _ = rig
    monkeypatch.setattr(answers, "QUIET_S", 0.0)
    scripted.script = [progress(), QueueFull("full")]
    response = await client.post("/v1/chat/completions", json={**BODY, "stream": True})
    assert '"code":"queue_full"' in response.text
    assert "[DONE]" not in response.text


async def test_an_answer_of_nothing_is_still_an_answer(rig: Rig) -> None:
    scripted, client, _ = rig
    scripted.script = [end()]
    whole = (await client.post("/v1/chat/completions", json=BODY)).json()
    assert whole["choices"][0]["message"]["content"] == ""
    assert whole["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    streamed = await client.post("/v1/chat/completions", json={**BODY, "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"stop"' in streamed.text


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_closes_the_answer_at_once(rig: Rig, stream: bool) -> None:
    scripted, _, server = rig
    scripted.script = [delta("x"), 30.0, end()]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = json.dumps({**BODY, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    if stream:
        await reader.read(100)
    else:
        await asyncio.sleep(0.2)
    assert scripted.requests
    assert not scripted.closed.is_set()
    writer.close()
    async with asyncio.timeout(0.5):
        await scripted.closed.wait()


async def test_what_the_client_asks_for_reaches_inference(rig: Rig) -> None:
    scripted, client, _ = rig
    scripted.script = [end()]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    await client.post(
        "/v1/chat/completions",
        json={
            "model": "owner/model:Q4_K_M",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": parts},
                {"role": "assistant", "content": None},
            ],
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "seed": -5,
            "max_tokens": 9,
            "max_completion_tokens": 7,
            "stop": "END",
            "presence_penalty": 1,
            "frequency_penalty": -1,
            "n": 1,
            "tools": [],
            "logit_bias": {},
            "response_format": {"type": "text"},
            "user": "me",
            "something_new": {"x": 1},
        },
    )
    (request,) = scripted.requests
    assert request.model == "owner/model:Q4_K_M"
    assert [(m.role, m.content) for m in request.messages] == [("system", "s"), ("user", "a\nb"), ("assistant", "")]
    s = request.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.seed) == (0, 0.5, 3, 0.1, -5)
    assert (s.max_tokens, s.stop) == (7, ("END",))
    assert (s.presence_penalty, s.frequency_penalty) == (1, -1)


async def test_ready_follows_the_bus_and_health_does_not(rig: Rig) -> None:
    scripted, client, _ = rig
    assert (await client.get("/ready")).status_code == 200
    scripted.ready = False
    response = await client.get("/ready")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "bus_unavailable"
    assert (await client.get("/health")).status_code == 200


async def test_a_port_in_use_is_a_clear_error(rig: Rig) -> None:
    _, _, server = rig
    other = GatewayServer(server._app)
    with pytest.raises(ConfigError, match="is taken by another process"):
        await other.start("127.0.0.1", server.port)
    with pytest.raises(ConfigError, match="can't be used"):
        await other.start("192.0.2.1", 0)


async def test_stopping_lets_a_running_answer_end(rig: Rig) -> None:
    scripted, client, server = rig
    scripted.script = [delta("a"), 0.3, delta("b"), end()]
    running = asyncio.ensure_future(client.post("/v1/chat/completions", json=BODY))
    await asyncio.sleep(0.1)
    await server.stop(5)
    assert (await running).json()["choices"][0]["message"]["content"] == "ab"
    with pytest.raises(httpx.ConnectError):
        await client.get("/health")


async def test_peers_of_other_machines_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's traffic stays on the loopback interface, so here that one counts as another machine."""
    scripted, client, _ = rig
    monkeypatch.setattr(auth, "is_loopback", lambda address: False)
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v0/nodes"), ("GET", "/x")):
        response = await client.request(method, path, headers={"X-Forwarded-For": "127.0.0.1"})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "unauthenticated"
        assert "LLMLB_AUTH=off" in response.json()["error"]["message"]
    assert scripted.requests == []
    for path in ("/health", "/ready"):
        assert (await client.get(path)).status_code == 200


async def test_auth_off_lets_every_peer_in(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client, server = rig
    monkeypatch.setattr(auth, "is_loopback", lambda address: False)
    gateway = server._app.ctx.gateway
    server._app.ctx.gateway = dataclasses.replace(gateway, settings=dataclasses.replace(gateway.settings, auth="off"))
    assert (await client.get("/v1/models")).status_code == 200
