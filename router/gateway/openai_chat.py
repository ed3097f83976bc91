"""POST /v1/chat/completions and /v1/completions. Source: OpenAI's API reference, "Chat" and "Completions (legacy)"."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sanic import Blueprint, Request
from sanic.response import HTTPResponse

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.base import changed
from llmlb.bus.messages.infer import Delta, End, InferRequest, Progress, TokenLogprob, ToolCallPiece, TopLogprob, Usage
from llmlb.router.gateway import sse
from llmlb.router.gateway.answers import Answer, respond, sign_of_life, usage_body
from llmlb.router.gateway.calls import inner_id
from llmlb.router.gateway.http_errors import body_of
from llmlb.router.gateway.image_fetch import with_images
from llmlb.router.gateway.openai_schema import ChatRequest, CompletionRequest, parse
from llmlb.router.gateway.plain_chat import plain_chat
from llmlb.router.ids import new_id

routes = Blueprint("openai_chat")

FINGERPRINT = "llmlb"


class _Shape(ABC):
    """What both surfaces share: ids, the usage event, one template a choice for every event of plain text."""

    def __init__(self, prefix: str, object: str, chunk_object: str, model: str, *, usage: bool) -> None:
        self._id = f"{prefix}-{new_id()}"
        self._created = int(time.time())
        self._object = object
        self._chunk_object = chunk_object
        self._model = model
        self._usage = usage
        self._templates: dict[int, sse.ChunkTemplate] = {}

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
    def _plain(self, index: int, text: str) -> dict[str, Any]:
        """The choice of an event that has nothing but text."""

    @abstractmethod
    def _rich(self, index: int, delta: Delta) -> dict[str, Any] | None:
        """The choice of any other event; None when there is nothing in it for this surface."""

    @abstractmethod
    def _stop(self, index: int, end: End) -> dict[str, Any]:
        """The choice of the last event."""

    @abstractmethod
    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        """The choice of an answer in one piece."""

    def piece(self, index: int, delta: Delta) -> bytes:
        if delta.reasoning or delta.tool_calls or delta.logprobs:
            choice = self._rich(index, delta)
            return b"" if choice is None else sse.data(self._chunk([choice]))
        if not delta.text:
            return b""
        template = self._templates.get(index)
        if template is None:
            mark = sse.ChunkTemplate.mark()
            template = self._templates[index] = sse.ChunkTemplate(self._chunk([self._plain(index, mark)]))
        return template.event(delta.text)

    def last(self, index: int, end: End) -> bytes:
        return sse.data(self._chunk([self._stop(index, end)]))

    def finish(self, usage: Usage) -> bytes:
        if not self._usage:
            return sse.DONE
        return sse.data({**self._head(self._chunk_object), "choices": [], "usage": usage_body(usage)}) + sse.DONE

    def alive(self, progress: Progress) -> bytes:
        return sse.comment(sign_of_life(progress))

    def failed(self, error: LlmlbError) -> bytes:
        return sse.data(body_of(error))

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        choices = [self._whole(index, answer) for index, answer in enumerate(answers)]
        return {**self._head(self._object), "choices": choices, "usage": usage_body(usage)}


class ChatShape(_Shape):
    """Chat completions. Thinking goes into ``reasoning_content``, as DeepSeek, vLLM and llama-server have it."""

    def __init__(self, model: str, *, usage: bool) -> None:
        super().__init__("chatcmpl", "chat.completion", "chat.completion.chunk", model, usage=usage)

    @staticmethod
    def _choice(index: int, delta: dict[str, Any], finish_reason: str | None, logprobs: Any = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _plain(self, index: int, text: str) -> dict[str, Any]:
        return self._choice(index, {"content": text}, None)

    def _rich(self, index: int, delta: Delta) -> dict[str, Any] | None:
        body: dict[str, Any] = {}
        if delta.reasoning:
            body["reasoning_content"] = delta.reasoning
        if delta.text:
            body["content"] = delta.text
        if delta.tool_calls:
            body["tool_calls"] = [_tool_call_piece(piece) for piece in delta.tool_calls]
        return self._choice(index, body, None, _chat_logprobs(delta.logprobs) if delta.logprobs else None)

    def _stop(self, index: int, end: End) -> dict[str, Any]:
        return self._choice(index, {}, end.finish_reason)

    def first(self, index: int) -> bytes:
        return sse.data(self._chunk([self._choice(index, {"role": "assistant", "content": ""}, None)]))

    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [_tool_call(piece) for piece in answer.tool_calls]
        return {
            "index": index,
            "message": message,
            "logprobs": _chat_logprobs(answer.logprobs) if answer.logprobs else None,
            "finish_reason": answer.end.finish_reason if answer.end else None,
        }


class CompletionShape(_Shape):
    """Completions, the older form."""

    def __init__(self, model: str, *, usage: bool) -> None:
        super().__init__("cmpl", "text_completion", "text_completion", model, usage=usage)
        self._offsets: dict[int, int] = {}

    @staticmethod
    def _choice(index: int, text: str, finish_reason: str | None, logprobs: Any = None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _plain(self, index: int, text: str) -> dict[str, Any]:
        return self._choice(index, text, None)

    def _rich(self, index: int, delta: Delta) -> dict[str, Any] | None:
        if not delta.logprobs:
            return self._choice(index, delta.text, None) if delta.text else None
        offset = self._offsets.get(index, 0)
        logprobs = _completion_logprobs(delta.logprobs, offset)
        self._offsets[index] = offset + sum(_begun(token) for token in delta.logprobs)
        return self._choice(index, delta.text, None, logprobs)

    def _stop(self, index: int, end: End) -> dict[str, Any]:
        return self._choice(index, "", end.finish_reason)

    def first(self, index: int) -> bytes:
        return b""

    def _whole(self, index: int, answer: Answer) -> dict[str, Any]:
        logprobs = _completion_logprobs(answer.logprobs, 0) if answer.logprobs else None
        return self._choice(index, answer.text, answer.end.finish_reason if answer.end else None, logprobs)


def _tool_call(piece: ToolCallPiece) -> dict[str, Any]:
    return {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": piece.arguments}}


def _tool_call_piece(piece: ToolCallPiece) -> dict[str, Any]:
    """The id, type and name are in the first piece only: clients append what comes later, and null is no text."""
    if piece.id is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    return {"index": piece.index, **_tool_call(piece)}


def _chat_logprob(token: TopLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token_bytes)}


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [{**_chat_logprob(token), "top_logprobs": [_chat_logprob(top) for top in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _begun(token: TokenLogprob) -> int:
    """Code points whose first byte is in the token, so that one split over several tokens counts once."""
    return sum(byte & 0xC0 != 0x80 for byte in token.token_bytes)


def _completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += _begun(token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{top.token: top.logprob for top in token.top} for token in tokens],
        "text_offset": offsets,
    }


def choices_of(request: InferRequest, count: int) -> list[InferRequest]:
    """One request a choice, each with a seed of its own: the first one's is the request's.

    A seed is always given, so that an answer that goes on elsewhere goes on with the same draws.
    """
    seed = request.sampling.seed
    base = random.getrandbits(62) if seed is None else seed
    out = []
    for index in range(count):
        sampling = changed(request.sampling, seed=base + index)
        if count == 1:
            return [changed(request, sampling=sampling)]
        request_id = request.request_id if not index else new_id()
        out.append(changed(request, sampling=sampling, request_id=request_id))
    return out


@routes.post("/v1/chat/completions")
async def chat_completions(request: Request) -> HTTPResponse | None:
    """Answer a conversation.

    With `stream: true` as server-sent events.
    """
    request_id, seed = inner_id(request), random.getrandbits(62)
    compared = request.app.ctx.gateway.prompts_compared
    if (plain := plain_chat(request.body, request_id, seed, compared)) is not None:
        inner, streamed = plain
        return await respond(request, [inner], ChatShape(inner.model, usage=False), stream=streamed)
    body = parse(ChatRequest, request.body)
    inner, images = body.request(request_id, seed)
    if images:
        inner = await with_images(request.app.ctx.gateway.settings, inner, images)
    shape = ChatShape(body.model, usage=body.usage_wanted())
    wanted = [inner] if body.choices() == 1 else choices_of(inner, body.choices())
    return await respond(request, wanted, shape, stream=bool(body.stream))


@routes.post("/v1/completions")
async def completions(request: Request) -> HTTPResponse | None:
    """Go on with a text.

    The older form, without roles and tools. With `stream: true` as server-sent events.
    """
    body = parse(CompletionRequest, request.body)
    first = body.request(inner_id(request))
    prompts = body.prompts()
    inner: list[InferRequest] = []
    for at, prompt in enumerate(prompts):
        one = first.model_copy(update={"prompt": prompt, "request_id": new_id() if at else first.request_id})
        inner += choices_of(one, body.choices())
    shape = CompletionShape(body.model, usage=body.usage_wanted())
    return await respond(request, inner, shape, stream=bool(body.stream), prompts=len(prompts))
