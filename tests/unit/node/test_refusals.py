"""A request at which the engine stumbles fails alone; the worker and its neighbours go on."""

from __future__ import annotations

import socket
import struct
from typing import Any

import orjson
import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import (
    ChatMessage,
    InferRequest,
    Timings,
    TokenLogprob,
    Tool,
    ToolCall,
    TopLogprob,
    Usage,
)
from llmlb.node.engine import worker
from llmlb.node.engine.channel import FrameReader, Kind
from llmlb.node.engine.interface import Defaults, Piece
from llmlb.node.engine.prompts import PromptMaker, reader_for
from llmlb.node.engine.templates import ChatTemplate

DEEP = "[" * 5000
CALLING = (
    "{% for m in messages %}{{ m.content }}{{ m.tool_calls|default([])|tojson }}{% endfor %}"
    "{{ tools|tojson }}<tool_call>"
)


def request(**more: Any) -> InferRequest:
    fields = {"kind": "chat", "messages": (ChatMessage(role="user", content="x"),), **more}
    return InferRequest(request_id="r", model="m", **fields)


def called(arguments: str) -> tuple[ChatMessage, ...]:
    call = ToolCall(id="1", name="f", arguments=arguments)
    return (
        ChatMessage(role="user", content="x"),
        ChatMessage(role="assistant", content="", tool_calls=(call,)),
        ChatMessage(role="tool", content="x", tool_call_id="1"),
    )


@pytest.mark.parametrize("template", [None, CALLING], ids=["knows no tools", "knows tools"])
@pytest.mark.parametrize(
    "arguments", [DEEP, "[" * 900 + "]" * 900, DEEP + "]" * 5000], ids=["broken", "deep", "deeper"]
)
def test_arguments_nested_too_deeply_are_text_or_the_requests_fault(template: str | None, arguments: str) -> None:
    maker = PromptMaker(ChatTemplate(template))
    try:
        assert maker.render(request(messages=called(arguments))).text
    except InvalidRequest:
        assert arguments.endswith("]"), "what is no JSON is text"


def test_variables_nested_too_deeply_are_the_requests_fault() -> None:
    with pytest.raises(InvalidRequest):
        PromptMaker(ChatTemplate(None)).render(request(template_kwargs=DEEP))


def test_a_reader_knows_nothing_of_a_schema_that_is_nested_too_deeply() -> None:
    tools = (Tool(name="f", parameters='{"a":' * 5000 + "1" + "}" * 5000),)
    shallow = request(tools=(Tool(name="f"),))
    prompt = PromptMaker(ChatTemplate(CALLING)).render(shallow)
    reader = reader_for(shallow, type(prompt)(prompt.pieces, None, tools, prompt.format))
    assert reader.feed(b"hello ").text + reader.finish().text == "hello "


class Stumbling:
    """An engine that has one request and raises at the next."""

    slots, context_length = 1, 10

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.cancelled: list[int] = []

    def submit(self, handle: int, request: InferRequest) -> None:
        if self.error is not None:
            raise self.error

    def cancel(self, handle: int) -> bool:
        self.cancelled.append(handle)
        return True


class Agent:
    """The other end of a worker's socket."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        self.sink = worker.SocketSink(ours)
        self._ours = ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def said(self) -> list[tuple[Kind, int, dict[str, Any]]]:
        self.sink.flush()
        self._ours.shutdown(socket.SHUT_WR)
        reader, out = FrameReader(), []
        while data := self._theirs.recv(1 << 20):
            out += [(kind, handle, orjson.loads(payload)) for kind, handle, payload in reader.feed(data)]
        self._theirs.close()
        self._ours.close()
        return out


def submit(agent: Agent, engine: Stumbling, payload: bytes) -> None:
    command = (Kind.SUBMIT, 7, struct.pack("<I", 3) + payload)
    worker._apply(engine, Defaults(), agent.sink, command)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RecursionError(), "invalid_request"),
        (RuntimeError("the prompt: secret"), "invalid_request"),
        (MemoryError(), "out_of_memory"),
        (InvalidRequest("half a pair: \ud800"), "invalid_request"),
        (InvalidRequest("endless " * 2_000_000), "invalid_request"),
    ],
    ids=["deep", "unforeseen", "no memory", "no text", "endless"],
)
def test_whatever_a_request_raises_is_its_own_end(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent, engine = Agent(), Stumbling(error)
    submit(agent, engine, request().model_dump_json().encode())
    ((kind, handle, failed),) = agent.said()
    assert (kind, handle, failed["request_id"], failed["seq"]) == (Kind.LAST, 7, "r", 3)
    assert failed["error"]["reason"] == reason
    assert engine.cancelled == [7], "nothing of it stays"
    assert "secret" not in str(failed) + caplog.text


@pytest.mark.parametrize("payload", [b'{"request_id":"r","kind":"song"}', b"no json", b"[]"])
def test_bytes_that_are_no_request_are_its_own_end(payload: bytes) -> None:
    agent = Agent()
    submit(agent, Stumbling(), payload)
    ((kind, handle, failed),) = agent.said()
    assert (kind, handle, failed["seq"]) == (Kind.LAST, 7, 3)
    assert failed["request_id"] == ("r" if payload.startswith(b"{") else "")
    assert failed["error"]["reason"] == "invalid_request"


def test_a_piece_too_large_for_the_bus_ends_its_answer_alone() -> None:
    agent, engine = Agent(), Stumbling()
    agent.sink.open(1, "large", 5)
    agent.sink.open(2, "small", 0)
    top = tuple(TopLogprob(token="x" * 40, token_bytes=tuple(range(40)), logprob=-1.0) for _ in range(20))
    logprobs = tuple(TokenLogprob(token="x", token_bytes=(1,), logprob=-1.0, top=top) for _ in range(2500))
    agent.sink.delta(1, Piece(text="x", logprobs=logprobs))
    agent.sink.delta(2, Piece(text="y"))
    agent.sink.end(1, "stop", Usage(prompt_tokens=1, completion_tokens=1), Timings())
    assert agent.sink.broken == [1], "the engine is told to forget it"
    said = [(kind, handle, message["seq"]) for kind, handle, message in agent.said()]
    assert said == [(Kind.LAST, 1, 5), (Kind.CHUNK, 2, 0)]
    assert not engine.cancelled
