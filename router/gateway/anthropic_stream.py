"""Answers as Anthropic words them: one message, or its stream of named events.

Source: Anthropic's API reference, "Messages" and "Streaming messages".
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import Delta, End, Progress, Usage
from llmlb.router.gateway import sse
from llmlb.router.gateway.answers import Answer
from llmlb.router.gateway.blocks import Block, Blocks, Step, blocks_of
from llmlb.router.gateway.http_errors import answer_of, anthropic_body, body_of

SIGNATURE = "llmlb"
"""Of thinking. Clients send it back unread, and nobody checks it: thinking is no secret here."""
UNREADABLE = "INVALID_JSON"
"""The key for arguments that are not JSON: those of a call that was cut off. Source: Anthropic's documents on
fine-grained tool streaming."""
_PING = sse.event("ping", {"type": "ping"})


class MessageShape:
    """One answer. Implements :class:`llmlb.router.gateway.answers.Shape`."""

    def __init__(self, model: str, request_id: str, *, show_thinking: bool = True) -> None:
        self._id = f"msg_{uuid.uuid4().hex}"
        self._model = model
        self._request_id = request_id
        self._show_thinking = show_thinking
        self._blocks = Blocks()
        self._template: sse.ChunkTemplate | None = None
        """Of the open block of text."""
        self._prompt_tokens = 0
        """As far as known before the end."""

    # In one piece

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        answer = answers[0]
        content = [self._whole_block(block) for block in blocks_of(answer)]
        message = self._message(content, _usage(usage))
        return message if answer.end is None else {**message, **_stop(answer.end)}

    def _message(self, content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _whole_block(self, block: Block) -> dict[str, Any]:
        if block.kind == "thinking":
            text = block.text if self._show_thinking else ""
            return {"type": "thinking", "thinking": text, "signature": SIGNATURE}
        if block.kind == "text":
            return {"type": "text", "text": block.text}
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _input(block.text)}

    # As events

    def first(self, index: int) -> bytes:
        usage = _usage(Usage(prompt_tokens=self._prompt_tokens, completion_tokens=0))
        return sse.event("message_start", {"type": "message_start", "message": self._message([], usage)})

    def piece(self, index: int, delta: Delta) -> bytes:
        open = self._blocks.open
        if self._template is not None and open is not None and not (delta.reasoning or delta.tool_calls):
            if not delta.text:
                return b""
            open.pieces.append(delta.text)
            return self._template.event(delta.text)
        return b"".join(self._step(step) for step in self._blocks.feed(delta))

    def _step(self, step: Step) -> bytes:
        block = step.block
        if step.what == "open":
            self._template = _template(block) if block.kind == "text" else None
            shown = {"type": "content_block_start", "index": block.index, "content_block": _begun(block)}
            return sse.event("content_block_start", shown)
        if step.what == "more":
            if block.kind == "thinking":
                if not self._show_thinking:
                    return b""
                return _delta(block, {"type": "thinking_delta", "thinking": step.text})
            if block.kind == "text":
                return _delta(block, {"type": "text_delta", "text": step.text})
            return _delta(block, {"type": "input_json_delta", "partial_json": step.text})
        self._template = None
        stop = sse.event("content_block_stop", {"type": "content_block_stop", "index": block.index})
        if block.kind == "thinking":
            return _delta(block, {"type": "signature_delta", "signature": SIGNATURE}) + stop
        return stop

    def last(self, index: int, end: End) -> bytes:
        out = b"".join(self._step(step) for step in self._blocks.finish())
        out += sse.event("message_delta", {"type": "message_delta", "delta": _stop(end), "usage": _usage(end.usage)})
        return out + sse.event("message_stop", {"type": "message_stop"})

    def finish(self, usage: Usage) -> bytes:
        return b""

    def alive(self, progress: Progress) -> bytes:
        if progress.phase == "prefill":
            self._prompt_tokens = progress.total
        return _PING

    def failed(self, error: LlmlbError) -> bytes:
        body = anthropic_body(answer_of(error).status, body_of(error), self._request_id)
        return sse.event("error", body)


def _begun(block: Block) -> dict[str, Any]:
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": ""}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}


def _delta(block: Block, delta: dict[str, Any]) -> bytes:
    return sse.event("content_block_delta", {"type": "content_block_delta", "index": block.index, "delta": delta})


def _template(block: Block) -> sse.ChunkTemplate:
    delta = {"type": "text_delta", "text": sse.ChunkTemplate.mark()}
    payload = {"type": "content_block_delta", "index": block.index, "delta": delta}
    return sse.ChunkTemplate(payload, "content_block_delta")


def _input(text: str) -> dict[str, Any]:
    """Arguments as an object. A tool without parameters may be called with nothing.

    What could be read and not be written again, as what is nested too deep, must not cost the answer.
    """
    try:
        value = orjson.loads(text or "{}")
        orjson.dumps([[[[[[value]]]]]])  # as deep as it lies in the answer
    except (ValueError, TypeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {UNREADABLE: text}


def _stop(end: End) -> dict[str, Any]:
    if end.finish_reason == "tool_calls":
        reason = "tool_use"
    elif end.finish_reason == "length":
        reason = "max_tokens"
    else:
        reason = "end_turn" if end.stop_text is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": end.stop_text if reason == "stop_sequence" else None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts the tokens that were read from the cache apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
