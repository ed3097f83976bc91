"""The messages of Anthropic's API as the bus carries them. Source: Anthropic's API reference, "Messages"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, StrictStr

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import ChatMessage, ContentPart, ToolCall
from llmlb.router.gateway.openai_messages import MAX_IMAGES, Body, ImageAddress, check_parts, image_part, parts_in
from llmlb.router.gateway.openai_tools import json_text
from llmlb.router.gateway.parts_schema import BlockIn

MEDIA_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_SKIPPED = frozenset({"redacted_thinking"})
"""Blocks that only Anthropic's own models can read."""

_SEEN = ("text", "image", "document", "search_result")
"""Blocks that say something, of turns and of results of tools."""
_HEADS = {"document": ("title", "context"), "search_result": ("source", "title")}
"""What stands before the text of a block."""


class AnthropicMessage(Body):
    """One turn."""

    role: Literal["user", "assistant", "system"] = Field(description="who speaks")
    content: StrictStr | list[BlockIn] = Field(description="a text, or blocks")


@dataclass(slots=True)
class _Turn:
    """One turn of the bus, while it is put together."""

    role: str
    parts: list[ContentPart] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None

    def message(self) -> ChatMessage:
        return ChatMessage(
            role=self.role,
            content="\n".join(part.text for part in self.parts if part.type == "text"),
            parts=tuple(self.parts) if any(part.type == "image" for part in self.parts) else (),
            reasoning="\n".join(self.reasoning) or None,
            tool_calls=tuple(self.calls),
            tool_call_id=self.tool_call_id,
        )


class _Reader:
    """Reads turn after turn. Turns of the same role that follow each other are one, as Anthropic has it."""

    def __init__(self) -> None:
        self.turns: list[_Turn] = []
        self.images: list[ImageAddress] = []

    def read(self, message: AnthropicMessage, where: str) -> None:
        """Raises InvalidRequest."""
        content = message.content
        if isinstance(content, str):
            self._turn(message.role).parts.append(ContentPart(type="text", text=content))
            return
        if not content and message.role != "assistant":
            raise InvalidRequest("must not be empty", param=f"{where}.content")
        if not content:
            self._turn(message.role)
        for at, block in enumerate(content):
            self._block(message.role, block, f"{where}.content.{at}")

    def _turn(self, role: str) -> _Turn:
        """The turn to add to: the last one, if it is of this role."""
        if not self.turns or self.turns[-1].role != role:
            self.turns.append(_Turn(role))
        return self.turns[-1]

    def _block(self, role: str, block: Any, where: str) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str):
            raise InvalidRequest("a block must be an object with a type", param=where)
        if kind in _SEEN:
            self._turn(role).parts += self._parts(block, where)
        elif kind == "tool_result" and role == "user":
            self._result(block, where)
        elif kind == "tool_use" and role == "assistant":
            self._turn(role).calls.append(_call(block, where))
        elif kind == "thinking" and role == "assistant":
            if not isinstance(block.get("signature"), str | None):
                raise InvalidRequest("must be a text", param=f"{where}.signature")
            self._turn(role).reasoning.append(_text(block, "thinking", where))
        elif kind not in _SKIPPED:
            raise InvalidRequest(f"blocks of type '{kind}' are not supported in a turn of role {role}", param=where)

    def _parts(self, block: dict[str, Any], where: str) -> list[ContentPart]:
        kind = block["type"]
        if kind == "text":
            return [ContentPart(type="text", text=_text(block, "text", where))]
        if kind == "image":
            return [self._image(block.get("source"), f"{where}.source")]
        _refuse_citations(block, where)
        head = [_text(block, key, where) for key in _HEADS[kind] if block.get(key) is not None]
        told = [ContentPart(type="text", text=text) for text in head if text]
        if kind == "search_result":
            return [*told, *self._inner(block.get("content"), f"{where}.content")]
        source = block.get("source")
        source = source if isinstance(source, dict) else {}
        where = f"{where}.source"
        if source.get("type") == "text":
            return [*told, ContentPart(type="text", text=_text(source, "data", where))]
        if source.get("type") == "content":
            return [*told, *self._inner(source.get("content"), f"{where}.content")]
        raise InvalidRequest("documents must be of type text or content: others are not supported", param=where)

    def _inner(self, content: Any, where: str) -> list[ContentPart]:
        """What a document or a search result is made of: texts and images."""
        if isinstance(content, str):
            return [ContentPart(type="text", text=content)]
        if not isinstance(content, list):
            raise InvalidRequest("must be a text or a list of blocks", param=where)
        parts: list[ContentPart] = []
        for at, block in enumerate(content):
            if not isinstance(block, dict) or block.get("type") not in ("text", "image"):
                raise InvalidRequest("must be text or image", param=f"{where}.{at}.type")
            parts += self._parts(block, f"{where}.{at}")
        return parts

    def _image(self, source: Any, where: str) -> ContentPart:
        source = source if isinstance(source, dict) else {}
        if source.get("type") == "url":
            return image_part(_text(source, "url", where), where, self.images)
        if source.get("type") != "base64":
            raise InvalidRequest("an image's source must be of type base64 or url", param=where)
        media_type = source.get("media_type")
        if not isinstance(media_type, str) or media_type not in MEDIA_TYPES:
            raise InvalidRequest(f"must be one of {', '.join(sorted(MEDIA_TYPES))}", param=f"{where}.media_type")
        return image_part(f"data:{media_type};base64,{_text(source, 'data', where)}", where, self.images)

    def _result(self, block: dict[str, Any], where: str) -> None:
        """A tool's result is a turn of its own."""
        turn = _Turn("tool", tool_call_id=_text(block, "tool_use_id", where))
        if not isinstance(block.get("is_error"), bool | None):
            raise InvalidRequest("must be true or false", param=f"{where}.is_error")
        content = block.get("content")
        if isinstance(content, str):
            turn.parts.append(ContentPart(type="text", text=content))
        elif isinstance(content, list):
            for at, part in enumerate(content):
                kind = part.get("type") if isinstance(part, dict) else None
                if kind not in _SEEN:
                    raise InvalidRequest(f"must be one of {', '.join(_SEEN)}", param=f"{where}.content.{at}.type")
                turn.parts += self._parts(part, f"{where}.content.{at}")
        elif content is not None:
            raise InvalidRequest("must be a text or a list of blocks", param=f"{where}.content")
        self.turns.append(turn)


def _refuse_citations(block: dict[str, Any], where: str) -> None:
    """Raises InvalidRequest for an answer that would have to say where it has something from."""
    citations = block.get("citations")
    if not isinstance(citations, dict | None):
        raise InvalidRequest("must be an object", param=f"{where}.citations")
    if citations is not None and citations.get("enabled") is not None and citations["enabled"] is not False:
        raise InvalidRequest("citations are not supported", param=f"{where}.citations.enabled")


def _text(block: dict[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise InvalidRequest("must be a text", param=f"{where}.{key}")
    return value


def _call(block: dict[str, Any], where: str) -> ToolCall:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise InvalidRequest("must be an object", param=f"{where}.input")
    return ToolCall(
        id=_text(block, "id", where),
        name=_text(block, "name", where),
        arguments=json_text(arguments, f"{where}.input"),
    )


def system_text(system: str | list[Any] | None) -> str | None:
    """The system prompt: a text, or blocks of text. Raises InvalidRequest."""
    if system is None or isinstance(system, str):
        return system
    texts = []
    for at, block in enumerate(system):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise InvalidRequest("the system prompt is made of blocks of type text", param=f"system.{at}")
        texts.append(_text(block, "text", f"system.{at}"))
    return "\n".join(texts)


def conversation(
    system: str | list[Any] | None, messages: Sequence[AnthropicMessage]
) -> tuple[tuple[ChatMessage, ...], list[ImageAddress]]:
    """The turns as the bus carries them, and the images that have to be fetched first. Raises InvalidRequest."""
    contents = [message.content for message in messages if isinstance(message.content, list)]
    blocks = sum([len(blocks) + sum([parts_in(block) for block in blocks]) for blocks in contents])
    check_parts(blocks, "messages")
    reader = _Reader()
    for index, message in enumerate(messages):
        reader.read(message, f"messages.{index}")
    if reader.turns and reader.turns[-1].role == "assistant":
        raise InvalidRequest(
            "the last turn must be the user's: to begin the answer for the model is not supported", param="messages"
        )
    turns = [turn.message() for turn in reader.turns]
    if sum(part.type == "image" for turn in turns for part in turn.parts) > MAX_IMAGES:
        raise InvalidRequest(f"at most {MAX_IMAGES} images", param="messages")
    text = system_text(system)
    if text:
        turns.insert(0, ChatMessage(role="system", content=text))
    return tuple(turns), reader.images
