"""The items of ``/v1/responses``: as they are stored and listed, and as the turns of a conversation.

Source: OpenAI's API reference, "Responses", "Input items".
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import ChatMessage, ContentPart, ToolCall
from llmlb.router.gateway.openai_messages import MAX_IMAGES, ImageAddress, check_parts, image_part, parts_in
from llmlb.router.gateway.openai_schema import MAX_MESSAGES

Item = dict[str, Any]
ROLES = ("user", "assistant", "system", "developer")
_PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


REFERENCE = "item_reference"
_OF_RESPONSE = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9a-f]{4,8}")


def new_id(kind: str) -> str:
    """An id for an item of this type."""
    return f"{_PREFIX[kind]}_{uuid.uuid4().hex}"


def id_in_response(kind: str, response_id: str, index: int) -> str:
    """An id for an item of an answer: it says which answer, so that references to it lead there."""
    return f"{_PREFIX[kind]}_{response_id.partition('_')[2]}{index:04x}"


def response_of(item_id: str) -> str | None:
    """The answer that an item with such an id is of, or None."""
    match = _OF_RESPONSE.fullmatch(item_id)
    return None if match is None else f"resp_{match[1]}"


def items_of(given: str | list[Any]) -> list[Item]:
    """What a request brings, in the long form: each item with its id and type. Raises InvalidRequest."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if len(given) > MAX_MESSAGES:
        raise InvalidRequest(f"input: at most {MAX_MESSAGES} items", param="input")
    check_parts(sum([parts_in(item) for item in given]), "input")
    return [_item(item, f"input.{index}") for index, item in enumerate(given)]


def _item(item: Any, where: str) -> Item:
    if not isinstance(item, dict):
        raise InvalidRequest("an item must be an object", param=where)
    kind = item.get("type")
    if kind is None and "role" in item:
        kind = "message"
    if kind == REFERENCE or (kind is None and "id" in item):
        return {"type": REFERENCE, "id": _text(item, "id", where)}
    if not isinstance(kind, str) or kind not in _PREFIX:
        shown = f"items of type '{kind}'"[:80] if isinstance(kind, str) else "items without a type or role"
        raise InvalidRequest(
            f"{shown} are not supported: {', '.join((*_PREFIX, REFERENCE))} are", param=f"{where}.type"
        )
    given_id = item.get("id")
    out: Item = {**item, "type": kind, "id": given_id if isinstance(given_id, str) and given_id else new_id(kind)}
    if kind == "message":
        if item.get("role") not in ROLES:
            raise InvalidRequest(f"must be one of {', '.join(ROLES)}", param=f"{where}.role")
        content = item.get("content")
        if isinstance(content, str):
            part = "output_text" if item["role"] == "assistant" else "input_text"
            out["content"] = [{"type": part, "text": content}]
            if part == "output_text":
                out["content"][0]["annotations"] = []
        elif not isinstance(content, list):
            raise InvalidRequest("must be a text or a list of parts", param=f"{where}.content")
    if kind == "reasoning":
        for key in ("content", "summary"):
            if not isinstance(item.get(key), list | None):
                raise InvalidRequest("must be a list of parts", param=f"{where}.{key}")
    out.setdefault("status", "completed")
    return out


class _Turns:
    """Puts turns together: what the model said in a row (thinking, text, calls) is one turn."""

    def __init__(self) -> None:
        self.done: list[ChatMessage] = []
        self.images: list[ImageAddress] = []
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, item: Item, where: str) -> None:
        """Raises InvalidRequest."""
        kind = item["type"]
        if kind == "reasoning":
            self._reasoning.append(_thinking(item))
        elif kind == "function_call":
            self._calls.append(
                ToolCall(
                    id=_text(item, "call_id", where),
                    name=_text(item, "name", where),
                    arguments=_text(item, "arguments", where),
                )
            )
        elif kind == "function_call_output":
            self.flush()
            call_id = _text(item, "call_id", where)
            self._turn("tool", self._parts(item.get("output"), f"{where}.output"), tool_call_id=call_id)
        elif kind == REFERENCE:
            raise InvalidRequest("no item with this id is stored", param=f"{where}.id")
        elif item["role"] == "assistant":
            self._texts += [part.text for part in self._parts(item["content"], f"{where}.content")]
        else:
            self.flush()
            self._turn(item["role"], self._parts(item["content"], f"{where}.content"))

    def flush(self) -> None:
        """The model's turn is over."""
        if self._texts or self._reasoning or self._calls:
            message = ChatMessage(
                role="assistant",
                content="\n".join(self._texts),
                reasoning="\n".join(self._reasoning) or None,
                tool_calls=tuple(self._calls),
            )
            self.done.append(message)
        self._texts, self._reasoning, self._calls = [], [], []

    def _turn(self, role: str, parts: list[ContentPart], **more: Any) -> None:
        images = any(part.type == "image" for part in parts)
        content = "\n".join(part.text for part in parts if part.type == "text")
        self.done.append(ChatMessage(role=role, content=content, parts=tuple(parts) if images else (), **more))

    def _parts(self, content: Any, where: str) -> list[ContentPart]:
        if isinstance(content, str):
            return [ContentPart(type="text", text=content)]
        if not isinstance(content, list):
            raise InvalidRequest("must be a text or a list of parts", param=where)
        return [self._part(part, f"{where}.{at}") for at, part in enumerate(content)]

    def _part(self, part: Any, where: str) -> ContentPart:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            return ContentPart(type="text", text=_text(part, "text", where))
        if kind == "refusal":
            return ContentPart(type="text", text=_text(part, "refusal", where))
        if kind == "input_image" and part.get("image_url") is not None:
            return image_part(part["image_url"], where, self.images)
        if kind == "input_image":
            raise InvalidRequest("images by file_id are not supported: image_url is", param=where)
        raise InvalidRequest(
            f"parts of type '{kind}' are not supported: input_text, output_text and input_image are"[:200], param=where
        )


def _thinking(item: Item) -> str:
    """The text of a reasoning item: its content, or else its summary."""
    for key in ("content", "summary"):
        parts = item.get(key)
        if isinstance(parts, list) and parts:
            return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    return ""


def _text(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidRequest("must be a text", param=f"{where}.{key}")
    return value


def conversation(
    instructions: str | None, before: Sequence[Item], items: Sequence[Item]
) -> tuple[tuple[ChatMessage, ...], list[ImageAddress]]:
    """The turns as the bus carries them, and the images that have to be fetched first. Raises InvalidRequest.

    ``before``: of earlier answers. Instructions are not handed on from them.
    """
    turns = _Turns()
    if instructions:
        turns.done.append(ChatMessage(role="system", content=instructions))
    for item in before:
        turns.add(item, "previous_response_id")
    for index, item in enumerate(items):
        turns.add(item, f"input.{index}")
    turns.flush()
    if sum(part.type == "image" for turn in turns.done for part in turn.parts) > MAX_IMAGES:
        raise InvalidRequest(f"input: at most {MAX_IMAGES} images", param="input")
    if not any(turn.role not in ("system", "developer") for turn in turns.done):
        raise InvalidRequest("input: must not be empty", param="input")
    return tuple(turns.done), turns.images


def without_oldest(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...] | None:
    """The conversation without its oldest third, for ``truncation: auto``; None when nothing can go.

    System prompts stay, and so does the last turn; results of tools go with the calls they answer.
    """
    first = next((at for at, turn in enumerate(messages) if turn.role not in ("system", "developer")), len(messages))
    rest = len(messages) - first
    at = first + max(1, rest // 3)
    while at < len(messages) and messages[at].role == "tool":
        at += 1
    if at >= len(messages):
        return None
    return (*messages[:first], *(turn for turn in messages[first:at] if turn.role == "system"), *messages[at:])
