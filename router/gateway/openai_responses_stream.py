"""Answers as ``/v1/responses`` words them: one response with its items, or the stream of events that makes it.

Source: OpenAI's API reference, "Responses" and "Streaming events". A stream ends with its last event; no ``[DONE]``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import Delta, End, Progress, TokenLogprob, TopLogprob, Usage
from llmlb.router.gateway import sse
from llmlb.router.gateway.answers import Answer, sign_of_life
from llmlb.router.gateway.blocks import Block, Blocks, Step, blocks_of
from llmlb.router.gateway.http_errors import answer_of
from llmlb.router.gateway.openai_responses_items import Item, id_in_response

_TYPES = {"thinking": "reasoning", "text": "message", "call": "function_call"}


class ResponseShape:
    """One answer. Implements :class:`llmlb.router.gateway.answers.Shape`.

    :meth:`settle` comes before :meth:`last` and :meth:`whole`: then :attr:`body` is the finished response.
    """

    def __init__(self, head: dict[str, Any], *, summarized: bool, store: bool) -> None:
        """``head``: what the response says of its request. ``summarized``: thinking is shown as a summary."""
        self.id = f"resp_{uuid.uuid4().hex}"
        self.store = store
        """Whether it says that it is stored."""
        self.body: dict[str, Any] = {}
        self._head = head
        self._created = int(time.time())
        self._summarized = summarized
        self._number = 0
        """Of the next event."""
        self._begun = False
        self._blocks = Blocks()
        self._ids: dict[int, str] = {}
        self._done: list[Item] = []
        self._fast: bytes | None = None
        """What comes before the text of an event of the open text; None where no text is open."""
        self._tail = b""

    def _response(self, status: str, output: list[Item], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": output,
            **self._head,
            "store": self.store,
            "usage": None,
            **more,
        }

    def settle(self, answer: Answer) -> None:
        """The answer is over. Of a stream, ``answer`` has its end alone; all else was seen as it came."""
        end = answer.end
        assert end is not None
        if self._begun:
            self._tail = b"".join(self._step(step, last=end) for step in self._blocks.finish())
            output = self._done
        else:
            blocks = blocks_of(answer)
            for block in blocks:
                self._ids[block.index] = id_in_response(_TYPES[block.kind], self.id, block.index)
            output = [self._item(block, _status(end) if block is blocks[-1] else "completed") for block in blocks]
        more: dict[str, Any] = {"usage": usage_body(end.usage), "completed_at": int(time.time())}
        if end.finish_reason == "length":
            more = {**more, "completed_at": None, "incomplete_details": {"reason": "max_output_tokens"}}
        self.body = self._response(_status(end), output, **more)

    def not_stored(self) -> None:
        """It could not be kept: the response says so."""
        self.store = False
        if self.body:
            self.body["store"] = False

    # In one piece

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        return self.body

    def _item(self, block: Block, status: str) -> Item:
        """A block as the item that it is, with all that has come of it."""
        head = {"id": self._ids[block.index], "type": _TYPES[block.kind], "status": status}
        if block.kind == "call":
            return {**head, "call_id": block.call_id, "name": block.name, "arguments": block.text}
        begun = bool(block.pieces)
        if block.kind == "text":
            return {**head, "role": "assistant", "content": [_text_part(block)] if begun else []}
        if self._summarized:
            return {**head, "summary": [_summary(block.text)] if begun else []}
        return {**head, "summary": [], "content": [_thinking(block.text)] if begun else []}

    # As events

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return sse.event(kind, {"type": kind, **fields, "sequence_number": number})

    def first(self, index: int) -> bytes:
        self._begun = True
        response = self._response("in_progress", [])
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def piece(self, index: int, delta: Delta) -> bytes:
        open = self._blocks.open
        if self._fast is not None and open is not None and not (delta.reasoning or delta.tool_calls or delta.logprobs):
            if not delta.text:
                return b""
            open.pieces.append(delta.text)
            number, self._number = self._number, self._number + 1
            return b'%b%b,"sequence_number":%d}\n\n' % (self._fast, orjson.dumps(delta.text), number)
        return b"".join(self._step(step) for step in self._blocks.feed(delta))

    def _step(self, step: Step, last: End | None = None) -> bytes:
        """``last``: the end of the answer, where the step is part of it."""
        block = step.block
        if step.what == "open":
            self._ids[block.index] = id_in_response(_TYPES[block.kind], self.id, block.index)
            item = self._item(block, "in_progress")
            return self._event("response.output_item.added", output_index=block.index, item=item) + self._opened(block)
        if step.what == "more":
            return self._more(step)
        out = self._closed(block)
        item = self._item(block, "completed" if last is None else _status(last))
        self._done.append(item)
        return out + self._event("response.output_item.done", output_index=block.index, item=item)

    def _where(self, block: Block) -> dict[str, Any]:
        where: dict[str, Any] = {"item_id": self._ids[block.index], "output_index": block.index}
        if block.kind == "thinking" and self._summarized:
            where["summary_index"] = 0
        elif block.kind != "call":
            where["content_index"] = 0
        return where

    def _opened(self, block: Block) -> bytes:
        where = self._where(block)
        if block.kind == "text":
            head = {"type": "response.output_text.delta", **where, "logprobs": []}
            self._fast = b"event: response.output_text.delta\ndata: " + orjson.dumps(head)[:-1] + b',"delta":'
            return self._event("response.content_part.added", **where, part=_text_part(block))
        if block.kind == "call":
            return b""
        if self._summarized:
            return self._event("response.reasoning_summary_part.added", **where, part=_summary(""))
        return self._event("response.content_part.added", **where, part=_thinking(""))

    def _more(self, step: Step) -> bytes:
        where = self._where(step.block)
        if step.block.kind == "text":
            logprobs = [_logprob_event(one) for one in step.logprobs]
            return self._event("response.output_text.delta", **where, delta=step.text, logprobs=logprobs)
        if step.block.kind == "call":
            return self._event("response.function_call_arguments.delta", **where, delta=step.text)
        kind = "response.reasoning_summary_text.delta" if self._summarized else "response.reasoning_text.delta"
        return self._event(kind, **where, delta=step.text)

    def _closed(self, block: Block) -> bytes:
        where, text = self._where(block), block.text
        self._fast = None
        if block.kind == "call":
            return self._event("response.function_call_arguments.done", **where, arguments=text)
        if block.kind == "text":
            logprobs = [_logprob_event(one) for one in block.logprobs]
            done = self._event("response.output_text.done", **where, text=text, logprobs=logprobs)
            return done + self._event("response.content_part.done", **where, part=_text_part(block))
        if self._summarized:
            done = self._event("response.reasoning_summary_text.done", **where, text=text)
            return done + self._event("response.reasoning_summary_part.done", **where, part=_summary(text))
        done = self._event("response.reasoning_text.done", **where, text=text)
        return done + self._event("response.content_part.done", **where, part=_thinking(text))

    def last(self, index: int, end: End) -> bytes:
        return self._tail + self._event(f"response.{self.body['status']}", response=self.body)

    def finish(self, usage: Usage) -> bytes:
        return b""

    def alive(self, progress: Progress) -> bytes:
        return sse.comment(sign_of_life(progress))

    def failed(self, error: LlmlbError) -> bytes:
        out = b"" if self._begun else self.first(0)
        status = answer_of(error).status
        code = "rate_limit_exceeded" if status == 429 else "invalid_prompt" if status < 500 else "server_error"
        self.not_stored()
        failed = self._response("failed", self._done, error={"code": code, "message": error.message})
        return out + self._event("response.failed", response=failed)


def _status(end: End) -> str:
    return "incomplete" if end.finish_reason == "length" else "completed"


def _text_part(block: Block) -> dict[str, Any]:
    logprobs = [_logprob(one) | {"top_logprobs": [_logprob(top) for top in one.top]} for one in block.logprobs]
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _logprob(token: TopLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token_bytes)}


def _logprob_event(token: TokenLogprob) -> dict[str, Any]:
    top = [{"token": one.token, "logprob": one.logprob} for one in token.top]
    return {"token": token.token, "logprob": token.logprob, "top_logprobs": top}


def usage_body(usage: Usage) -> dict[str, Any]:
    """The usage object of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
