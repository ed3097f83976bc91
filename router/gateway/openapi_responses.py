"""Answers and stream events of ``/v1/responses``, for the document. The shapes are made in
``openai_responses_stream.py``; tests hold every answer against these. Source: OpenAI's API reference, "Responses".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from llmlb.router.gateway.openapi_openai import ChatLogprob


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChatLogprob]


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(BaseModel):
    type: Literal["summary_text"]
    text: str


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class MessageItem(BaseModel):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningItem(BaseModel):
    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[SummaryText] = Field(description="its text, where `reasoning.summary` asks for one")
    content: list[ReasoningText] | None = Field(default=None, description="its text, otherwise")


class FunctionCallItem(BaseModel):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str = Field(description="the item with the result carries it")
    name: str
    arguments: str = Field(description="a JSON object as text")


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class ResponseError(BaseModel):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseReasoning(BaseModel):
    effort: str | None
    summary: str | None


class ResponseText(BaseModel):
    format: dict[str, Any]
    verbosity: str | None


class InputTokenDetails(BaseModel):
    cached_tokens: int = Field(ge=0)
    cache_write_tokens: int = Field(description="always 0")


class OutputTokenDetails(BaseModel):
    reasoning_tokens: int = Field(ge=0)


class ResponseUsage(BaseModel):
    input_tokens: int = Field(ge=0)
    input_tokens_details: InputTokenDetails
    output_tokens: int = Field(ge=0)
    output_tokens_details: OutputTokenDetails
    total_tokens: int = Field(ge=0)


class Response(BaseModel):
    """An answer: what it was asked, and its items."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Unix seconds")
    completed_at: int | None = Field(default=None, description="Unix seconds; null where it is incomplete")
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    output: list[OutputItem]
    usage: ResponseUsage | None
    store: bool = Field(description="whether it is stored")
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ResponseReasoning
    safety_identifier: str | None
    service_tier: str
    temperature: float | None
    text: ResponseText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["auto", "disabled"]
    user: str | None


class ResponseDeleted(BaseModel):
    id: str
    object: Literal["response"]
    deleted: bool


class InputTokens(BaseModel):
    object: Literal["response.input_tokens"]
    input_tokens: int = Field(ge=0, description="tokens of the prompt, with the model's own tokenizer and template")


class StoredItem(BaseModel):
    """A message, a call, its result, or reasoning, as it came in."""

    model_config = {"extra": "allow"}

    id: str
    type: str


class InputItems(BaseModel):
    object: Literal["list"]
    data: list[StoredItem]
    first_id: str | None
    last_id: str | None
    has_more: bool = Field(description="true: ask again with `after`")


class _Event(BaseModel):
    sequence_number: int = Field(ge=0, description="counts the events from 0")


class ResponseEvent(_Event):
    """The response as it is now: the first two events, and the last one."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response


class OutputItemEvent(_Event):
    """An item begins, or is whole."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _InItem(_Event):
    item_id: str
    output_index: int


class _InContent(_InItem):
    content_index: int


class ContentPartEvent(_InContent):
    """A part of a message, or of reasoning, begins or is whole."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText | ReasoningText


class LogprobCandidate(BaseModel):
    token: str
    logprob: float


class TextLogprob(LogprobCandidate):
    top_logprobs: list[LogprobCandidate]


class OutputTextDelta(_InContent):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[TextLogprob]


class OutputTextDone(_InContent):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TextLogprob]


class ReasoningDelta(_InContent):
    type: Literal["response.reasoning_text.delta"]
    delta: str


class ReasoningDone(_InContent):
    type: Literal["response.reasoning_text.done"]
    text: str


class SummaryPartEvent(_InItem):
    type: Literal["response.reasoning_summary_part.added", "response.reasoning_summary_part.done"]
    summary_index: int
    part: SummaryText


class SummaryDelta(_InItem):
    type: Literal["response.reasoning_summary_text.delta"]
    summary_index: int
    delta: str


class SummaryDone(_InItem):
    type: Literal["response.reasoning_summary_text.done"]
    summary_index: int
    text: str


class ArgumentsDelta(_InItem):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(_InItem):
    type: Literal["response.function_call_arguments.done"]
    arguments: str


ResponseStreamEvent = (
    ResponseEvent
    | OutputItemEvent
    | ContentPartEvent
    | OutputTextDelta
    | OutputTextDone
    | ReasoningDelta
    | ReasoningDone
    | SummaryPartEvent
    | SummaryDelta
    | SummaryDone
    | ArgumentsDelta
    | ArgumentsDone
)
