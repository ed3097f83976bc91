"""The messages of a chat body that is nothing special, once its JSON was read: checked by hand, without a schema."""

from __future__ import annotations

from typing import Any

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.base import made
from llmlb.bus.messages.infer import ChatMessage, ContentPart
from llmlb.router.gateway.openai_messages import MAX_IMAGES, MAX_PARTS, ImageAddress, content_part, text_of

ROLES = ("user", "assistant", "system", "developer", "tool")


def plain_message(role: str, content: str) -> ChatMessage:
    """A role and a text."""
    return made(ChatMessage, _fields(role, content))


def plain_messages(given: Any) -> tuple[ChatMessage, ...] | None:
    """None where there is none, or one is not a role and a text, or parts that are texts and images."""
    if type(given) is not list or not given:
        return None
    messages, pieces, images = [], 0, 0
    for one in given:
        if type(one) is not dict or len(one) != 2:
            return None
        role, content = one.get("role"), one.get("content")
        if role not in ROLES:
            return None
        fields = _fields(role, content)
        if type(content) is list:
            if (parts := _parts(content)) is None:
                return None
            fields["content"] = text_of(parts)
            if found := len([part for part in parts if part.type == "image"]):
                fields["parts"] = parts
            pieces, images = pieces + len(parts), images + found
        elif type(content) is not str:
            return None
        messages.append(made(ChatMessage, fields))
    return tuple(messages) if pieces <= MAX_PARTS and images <= MAX_IMAGES else None


def _fields(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content, "reasoning": None, "tool_call_id": None, "name": None}


def _parts(given: list[Any]) -> tuple[ContentPart, ...] | None:
    """None: one is wrong, or has to be fetched."""
    addresses: list[ImageAddress] = []
    try:
        parts = tuple([content_part(part, "", addresses) for part in given])
    except InvalidRequest:
        return None
    return None if addresses else parts
