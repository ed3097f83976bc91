"""Answers and stream events of OpenAI's routes, for the document. The shapes are made in ``openai_chat.py`` and
``openai_embeddings.py``; tests hold every answer against these. Source: OpenAI's API reference.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from llmlb.router.gateway.openapi_errors import ErrorDetail

Finish = Literal["stop", "length", "tool_calls"]


class OpenAIModel(BaseModel):
    id: str = Field(description="the model's name, for requests")
    object: Literal["model"]
    created: int = Field(description="Unix seconds")
    owned_by: str = Field(description="`llmlb`")


class OpenAIModelList(BaseModel):
    object: Literal["list"]
    data: list[OpenAIModel]


class CachedTokens(BaseModel):
    cached_tokens: int = Field(ge=0, description="of the prompt, those that were still in a node's cache")


class ReasoningTokens(BaseModel):
    reasoning_tokens: int = Field(ge=0, description="of the answer, those that were thought")


class OpenAIUsage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens | None = Field(default=None, description="where there was thinking")


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] = Field(description="its UTF-8 bytes, which may be part of a character")


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = Field(description="the likeliest tokens at this place")


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]
    refusal: None


class CalledFunctionOut(BaseModel):
    name: str
    arguments: str = Field(description="a JSON object as text")


class ChatToolCall(BaseModel):
    id: str | None = Field(description="the tool's result carries it")
    type: Literal["function"]
    function: CalledFunctionOut


class ChatAnswer(BaseModel):
    role: Literal["assistant"]
    content: str | None = Field(description="null where there are only calls of tools")
    refusal: None
    reasoning_content: str | None = Field(default=None, description="what the model thought, where it did")
    tool_calls: list[ChatToolCall] | None = Field(default=None, description="where it called any")


class ChatChoice(BaseModel):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class _Head(BaseModel):
    id: str
    created: int = Field(description="Unix seconds")
    model: str = Field(description="as it was asked for")
    system_fingerprint: str


class ChatCompletion(_Head):
    """An answer in one piece."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: OpenAIUsage


class FunctionPiece(BaseModel):
    name: str | None = Field(default=None, description="in the first piece of a call only")
    arguments: str = Field(description="to be appended")


class ChatToolCallPiece(BaseModel):
    index: int = Field(description="which call it belongs to")
    id: str | None = Field(default=None, description="in the first piece of a call only")
    type: Literal["function"] | None = Field(default=None, description="in the first piece of a call only")
    function: FunctionPiece


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = Field(default=None, description="in the first event of a choice only")
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ChatToolCallPiece] | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None = Field(description="in the last event of a choice")


class ChatCompletionChunk(_Head):
    """One event of a streamed answer, as `data:`. After the last one comes `data: [DONE]`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(description="empty in the event with the usage")
    usage: OpenAIUsage | None = Field(
        default=None, description="in the last event, with `stream_options.include_usage`"
    )


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int] = Field(description="where each token begins in the text, in characters")


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class Completion(_Head):
    """An answer of the older form, in one piece."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: OpenAIUsage


class CompletionChunk(_Head):
    """One event of a streamed answer, as `data:`. After the last one comes `data: [DONE]`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice] = Field(description="empty in the event with the usage")
    usage: OpenAIUsage | None = Field(
        default=None, description="in the last event, with `stream_options.include_usage`"
    )


class StreamFailed(BaseModel):
    """An answer that fails after its headers are out ends with this, as `data:`, and without `[DONE]`."""

    error: ErrorDetail


class EmbeddingVector(BaseModel):
    object: Literal["embedding"]
    index: int = Field(description="of the input")
    embedding: list[float] | str = Field(description="numbers, or base64 of little-endian float32")


class EmbeddingUsage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class Embeddings(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingVector] = Field(description="one for each input, in order")
    model: str = Field(description="as it was asked for")
    usage: EmbeddingUsage


ChatEvent = ChatCompletionChunk | StreamFailed
CompletionEvent = CompletionChunk | StreamFailed
