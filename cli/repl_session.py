"""A conversation: its turns, its settings, and what of it fits into the model's context. Pure.

Source: specs/cli-data-model.md, entities Session, Message, SessionSettings.
"""

from __future__ import annotations

import json
import time
import uuid
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ANSWER_SHARE = 4
"""One of so many parts of the context is kept free for the answer …"""
ANSWER_TOKENS = 512
"""… but no more than this."""
BYTES_A_TOKEN = 3
"""How long a text's tokens are taken to be before the server has counted them; few, so that it is not too late."""
IMAGES_MAX = 32
"""Images of one request. Source: the gateway, ``openai_messages.MAX_IMAGES``."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How answers are made and shown."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int | None = None
    show_thinking: bool = False
    stream: bool = True
    think: bool | None = None
    """Asked of the template; None: as it does by itself."""


@dataclass(frozen=True, slots=True)
class ImageData:
    """A file as it was read."""

    media_type: str
    data: bytes = field(repr=False)

    @property
    def url(self) -> str:
        return f"data:{self.media_type};base64,{b64encode(self.data).decode()}"


Part = str | ImageData


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``parts``: texts and images in their order; ``thinking`` is never sent back."""

    role: Literal["user", "assistant", "system"]
    parts: tuple[Part, ...]
    thinking: str | None = None
    timestamp: float = field(default_factory=time.time)

    @property
    def content(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[ImageData, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImageData))

    def body(self) -> dict[str, Any]:
        """As the gateway takes it."""
        if not self.images:
            return {"role": self.role, "content": self.content}
        shown = [
            {"type": "text", "text": part} if isinstance(part, str) else _image_part(part)
            for part in self.parts
            if not isinstance(part, str) or part.strip()
        ]
        return {"role": self.role, "content": shown}


def _image_part(image: ImageData) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image.url}}


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer, which come and go together. ``tokens``: what it adds to a prompt."""

    question: Message
    answer: Message
    tokens: int


@dataclass(slots=True)
class Session:
    """One conversation. ``history`` has only turns that were answered."""

    model_name: str
    settings: SessionSettings = SessionSettings()
    history: list[Turn] = field(default_factory=list)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_at: float = field(default_factory=time.time)
    token_count: int = 0
    """Tokens of all its answers and prompts so far, as they were counted by the server."""
    context_length: int | None = None
    """Tokens of the loaded model's context, where it is known."""
    dropped: bool = False
    """True once turns were dropped, until the conversation is cleared."""

    def clear(self) -> None:
        self.history.clear()
        self.dropped = False

    def request(self, question: Message) -> dict[str, Any]:
        """The body of the next request."""
        messages = [message.body() for turn in self.history for message in (turn.question, turn.answer)]
        settings = self.settings
        body: dict[str, Any] = {
            "model": self.model_name,
            "messages": [*messages, question.body()],
            "stream": settings.stream,
            "stream_options": {"include_usage": True},
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        if settings.max_tokens is not None:
            body["max_tokens"] = settings.max_tokens
        if settings.think is not None:
            body["think"] = settings.think
        return body

    def add(self, question: Message, answer: Message, usage: dict[str, Any] | None) -> None:
        """An answered turn. ``usage``: as the server counted it."""
        if usage is None:
            tokens = estimated(question) + estimated(answer)
        else:
            self.token_count += int(usage["prompt_tokens"]) + int(usage["completion_tokens"])
            # What was thought is not part of the next prompt.
            thought = int((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
            total = int(usage["prompt_tokens"]) + int(usage["completion_tokens"]) - thought
            tokens = max(1, total - sum(turn.tokens for turn in self.history))
        self.history.append(Turn(question, answer, tokens))

    def fit(self, question: Message, max_bytes: int) -> int:
        """Drop the oldest turns until the rest, the question and an answer should fit; how many were dropped.

        ``max_bytes``: of a request's body. A context that is not known has room for everything.
        """
        room = None
        if self.context_length is not None:
            room = self.context_length - min(ANSWER_TOKENS, self.context_length // ANSWER_SHARE) - estimated(question)
        dropped = 0
        while self.history and not (
            (room is None or sum(turn.tokens for turn in self.history) <= room)
            and sum(len(message.images) for message in self._messages(question)) <= IMAGES_MAX
            and sum(body_bytes(message) for message in self._messages(question)) <= max_bytes
        ):
            del self.history[0]
            dropped += 1
        return dropped

    def drop_oldest(self) -> int:
        """Drop the older half: the server says that it is too much. How many turns that were."""
        dropped = (len(self.history) + 1) // 2
        del self.history[:dropped]
        return dropped

    def _messages(self, question: Message) -> Sequence[Message]:
        return [message for turn in self.history for message in (turn.question, turn.answer)] + [question]


def estimated(message: Message) -> int:
    """Tokens of a message that nobody has counted. Images count as nothing: models differ too much."""
    return len(message.content.encode(errors="replace")) // BYTES_A_TOKEN + 8


def body_bytes(message: Message) -> int:
    """Bytes of a message inside a request."""
    images = sum(len(image.data) * 4 // 3 + 100 for image in message.images)
    return len(json.dumps(message.content)) + images + 64
