"""Answers and stream events of Anthropic's routes, for the document. The shapes are made in ``anthropic_stream.py``;
tests hold every answer against these. Source: Anthropic's API reference, "Messages" and "Streaming messages".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from llmlb.router.gateway.openapi_errors import AnthropicError


class ThinkingTokens(BaseModel):
    thinking_tokens: int = Field(ge=0, description="of the answer, those that were thought")


class AnthropicUsage(BaseModel):
    input_tokens: int = Field(ge=0, description="of the prompt, those that were computed")
    cache_creation_input_tokens: int = Field(description="always 0")
    cache_read_input_tokens: int = Field(ge=0, description="of the prompt, those that were still in a node's cache")
    output_tokens: int = Field(ge=0)
    output_tokens_details: ThinkingTokens


class TextOut(BaseModel):
    type: Literal["text"]
    text: str


class ThinkingOut(BaseModel):
    type: Literal["thinking"]
    thinking: str = Field(description="empty with `thinking.display: omitted`")
    signature: str = Field(description="a constant; nobody checks it")


class ToolUseOut(BaseModel):
    type: Literal["tool_use"]
    id: str = Field(description="the tool's result carries it")
    name: str
    input: dict[str, Any] = Field(description='`{"INVALID_JSON": "…"}` where the arguments were cut off')


Block = TextOut | ThinkingOut | ToolUseOut
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnthropicAnswer(BaseModel):
    """An answer in one piece."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str = Field(description="as it was asked for")
    content: list[Block]
    stop_reason: StopReason | None = Field(description="null in `message_start`")
    stop_sequence: str | None = Field(description="which one, with `stop_reason: stop_sequence`")
    usage: AnthropicUsage


class CountedTokens(BaseModel):
    input_tokens: int = Field(ge=0, description="tokens of the prompt, with the model's own tokenizer and template")


class AnthropicModel(BaseModel):
    type: Literal["model"]
    id: str = Field(description="the model's name, for requests")
    display_name: str = Field(description="the same")
    created_at: str = Field(description="RFC 3339")
    lifecycle: Literal["active"]


class AnthropicModelList(BaseModel):
    """What there is to use, as Anthropic's clients expect it: where `anthropic-version` is sent."""

    data: list[AnthropicModel]
    first_id: str | None
    last_id: str | None
    has_more: bool = Field(description="true: ask again with `after_id`, or `before_id`")


class ModelsQuery(BaseModel):
    """All are strings for OpenAI's clients, for whom they mean nothing."""

    limit: str | None = Field(default=None, description="models a page, 1 to 1000; in Anthropic's shape alone")
    after_id: str | None = Field(default=None, description="the last model of the page before; likewise")
    before_id: str | None = Field(default=None, description="the first model of the page after; likewise")


class MessageStart(BaseModel):
    type: Literal["message_start"]
    message: AnthropicAnswer


class ContentBlockStart(BaseModel):
    type: Literal["content_block_start"]
    index: int
    content_block: Block


class TextDelta(BaseModel):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(BaseModel):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(BaseModel):
    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(BaseModel):
    type: Literal["input_json_delta"]
    partial_json: str


class ContentBlockDelta(BaseModel):
    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(BaseModel):
    type: Literal["content_block_stop"]
    index: int


class StopDelta(BaseModel):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(BaseModel):
    type: Literal["message_delta"]
    delta: StopDelta
    usage: AnthropicUsage


class MessageStop(BaseModel):
    type: Literal["message_stop"]


class Ping(BaseModel):
    """While nothing else comes."""

    type: Literal["ping"]


AnthropicEvent = (
    MessageStart
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
    | Ping
    | AnthropicError
)
