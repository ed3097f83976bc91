"""POST /v1/chat/completions and /v1/completions. Source: OpenAI's API reference, "Chat" and "Completions (legacy)"."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from typing import Any

from sanic import Blueprint, Request
from sanic.response import HTTPResponse

from llmlb.bus.messages.infer import End, InferRequest
from llmlb.router.gateway import sse
from llmlb.router.gateway.answers import respond, usage_body
from llmlb.router.gateway.openai_schema import ChatRequest, CompletionRequest, parse

routes = Blueprint("openai_chat")

FINGERPRINT = "llmlb"


class _Shape(ABC):
    """What both surfaces share: ids, the usage event, one template for every text event."""

    def __init__(self, prefix: str, object: str, chunk_object: str, model: str, *, usage: bool) -> None:
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._object = object
        self._chunk_object = chunk_object
        self._model = model
        self._usage = usage
        self._template = sse.ChunkTemplate(self._chunk([self._piece(sse.ChunkTemplate.mark())]))

    def _head(self, object: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": object,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head(self._chunk_object), "choices": choices}
        if self._usage:
            chunk["usage"] = None
        return chunk

    @abstractmethod
    def _piece(self, text: str) -> dict[str, Any]:
        """The choice of a text event."""

    @abstractmethod
    def _stop(self, end: End) -> dict[str, Any]:
        """The choice of the last event."""

    def text(self, text: str) -> bytes:
        return self._template.event(text)

    def last(self, end: End) -> bytes:
        out = sse.data(self._chunk([self._stop(end)]))
        if self._usage:
            out += sse.data({**self._head(self._chunk_object), "choices": [], "usage": usage_body(end.usage)})
        return out


class ChatShape(_Shape):
    """Chat completions."""

    def __init__(self, model: str, *, usage: bool) -> None:
        super().__init__("chatcmpl", "chat.completion", "chat.completion.chunk", model, usage=usage)

    @staticmethod
    def _choice(delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def _piece(self, text: str) -> dict[str, Any]:
        return self._choice({"content": text}, None)

    def _stop(self, end: End) -> dict[str, Any]:
        return self._choice({}, end.finish_reason)

    def first(self) -> bytes:
        return sse.data(self._chunk([self._choice({"role": "assistant", "content": ""}, None)]))

    def whole(self, text: str, end: End) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.finish_reason}
        return {**self._head(self._object), "choices": [choice], "usage": usage_body(end.usage)}


class CompletionShape(_Shape):
    """Completions, the older form."""

    def __init__(self, model: str, *, usage: bool) -> None:
        super().__init__("cmpl", "text_completion", "text_completion", model, usage=usage)

    @staticmethod
    def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def _piece(self, text: str) -> dict[str, Any]:
        return self._choice(text, None)

    def _stop(self, end: End) -> dict[str, Any]:
        return self._choice("", end.finish_reason)

    def first(self) -> bytes:
        return b""

    def whole(self, text: str, end: End) -> dict[str, Any]:
        choices = [self._choice(text, end.finish_reason)]
        return {**self._head(self._object), "choices": choices, "usage": usage_body(end.usage)}


@routes.post("/v1/chat/completions")
async def chat_completions(request: Request) -> HTTPResponse | None:
    body = parse(ChatRequest, request.body)
    body.check()
    inner = InferRequest(
        request_id=uuid.uuid4().hex,
        model=body.model,
        kind="chat",
        messages=body.chat_messages(),
        sampling=body.sampling(),
    )
    return await respond(request, inner, ChatShape(body.model, usage=body.usage_wanted()), stream=bool(body.stream))


@routes.post("/v1/completions")
async def completions(request: Request) -> HTTPResponse | None:
    body = parse(CompletionRequest, request.body)
    body.check()
    inner = InferRequest(
        request_id=uuid.uuid4().hex,
        model=body.model,
        kind="completion",
        prompt=body.text(),
        sampling=body.sampling(),
    )
    shape = CompletionShape(body.model, usage=body.usage_wanted())
    return await respond(request, inner, shape, stream=bool(body.stream))
