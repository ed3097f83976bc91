"""The inference stream: one request to one node, numbered replies back to one inbox.

``accepted`` → ``progress``… → ``delta``… → exactly one ``end`` or ``failed``. ``seq`` counts from 0 without gaps over
all of them; a gap, or silence longer than the stall limit, is a failure and never a short answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, overload

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, field_serializer

from llmlb.bus.messages.base import Message, Part
from llmlb.bus.messages.errors import WireError

FinishReason = Literal["stop", "length", "tool_calls"]


class ContentPart(Part):
    """A piece of a turn that is not only text."""

    type: Literal["text", "image"] = Field(description="which of the fields below holds it")
    text: str = Field(default="", description="the text")
    data: str = Field(default="", description="the bytes of an image file (PNG, JPEG, WebP, GIF), base64")


class ToolCall(Part):
    """A call of a tool, as a model asked for it."""

    id: str = Field(description="names the call; the tool's answer carries it")
    name: str = Field(description="the function's name")
    arguments: str = Field(description="its arguments, a JSON object as text")


class ChatMessage(Part):
    """One turn of a conversation."""

    role: str = Field(description="system, developer, user, assistant or tool")
    content: str = Field(description="the text; of a turn with images, all its text")
    parts: tuple[ContentPart, ...] = Field(default=(), description="the pieces in order, when there are images")
    reasoning: str | None = Field(default=None, description="what the assistant thought before it answered")
    tool_calls: tuple[ToolCall, ...] = Field(default=(), description="calls the assistant asked for")
    tool_call_id: str | None = Field(default=None, description="the call that a tool turn answers")
    name: str | None = Field(default=None, description="who speaks: a tool's name, or a participant's")


class WrittenMessages(Sequence[ChatMessage]):
    """The messages of a request as the JSON they were read from, which goes on the bus as it is.

    Writing a long text as JSON once more costs more than all the rest of its message does. The texts themselves are
    dropped by :meth:`forget` once the request is on its way: mostly nobody asks for them again, and what waits for an
    answer is then there once. Whoever changes a message makes a tuple of them.
    """

    __slots__ = ("_read", "characters", "json")

    def __init__(self, messages: tuple[ChatMessage, ...] | None, json: memoryview) -> None:
        """``json``: an array, which was read and is good; ``messages``: made of it, or None where nobody wants them."""
        self._read = messages
        self.json = json
        self.characters = len(json) if messages is None else sum([len(message.content) for message in messages])
        """Of all texts; where they were not wanted the bytes of the JSON, about as many."""

    def forget(self) -> None:
        """Whoever wants a message from now on has them read again."""
        self._read = None

    @property
    def _all(self) -> tuple[ChatMessage, ...]:
        if self._read is None:
            self._read = _MESSAGES.validate_json(bytes(self.json))
        return self._read

    def __len__(self) -> int:
        return len(self._all)

    @overload
    def __getitem__(self, at: int) -> ChatMessage: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[ChatMessage, ...]: ...
    def __getitem__(self, at: int | slice) -> ChatMessage | tuple[ChatMessage, ...]:
        return self._all[at]

    def __iter__(self) -> Iterator[ChatMessage]:
        return iter(self._all)

    def __eq__(self, other: object) -> bool:
        return self._all == tuple(other) if isinstance(other, tuple | WrittenMessages) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._all)


_MESSAGES = TypeAdapter(tuple[ChatMessage, ...])


class Tool(Part):
    """A function that the model may call."""

    name: str = Field(description="the function's name")
    description: str = Field(default="", description="what it does, for the model")
    parameters: str = Field(default="{}", description="JSON schema of its arguments, as JSON text")


class ResponseFormat(Part):
    """What the answer must look like. The engine enforces it with a grammar."""

    type: Literal["text", "json_object", "json_schema"] = Field(default="text", description="the form asked for")
    json_schema: str | None = Field(default=None, description="the schema as JSON text, for json_schema")


class LogitBias(Part):
    """What is added to one token's logit."""

    token_id: int = Field(ge=0, description="the token")
    bias: float = Field(ge=-100, le=100, description="added to its logit; -100 bans it, 100 forces it")


class Sampling(Part):
    """How tokens are chosen. None means the engine's default, which the engine's documentation states."""

    temperature: float | None = Field(default=None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(default=None, gt=0, le=1, description="nucleus mass")
    top_k: int | None = Field(default=None, ge=0, description="candidates kept; 0 keeps all")
    min_p: float | None = Field(default=None, ge=0, le=1, description="least share of the best token's probability")
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, description="OpenAI's presence penalty")
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, description="OpenAI's frequency penalty")
    repeat_penalty: float = Field(default=1.0, gt=0, le=4, description="llama.cpp's repeat penalty; 1 is off")
    seed: int | None = Field(default=None, description="same seed, same text; None is random")
    max_tokens: int | None = Field(
        default=None, ge=1, description="tokens to generate at most; None: to the context's end"
    )
    thinking_tokens: int | None = Field(
        default=None, ge=1, description="tokens of thinking at most, then the answer is begun; None: any number"
    )
    stop: tuple[str, ...] = Field(default=(), description="texts that end the answer and are not part of it")
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="log probabilities: None is off, else alternatives a token"
    )
    logit_bias: tuple[LogitBias, ...] = Field(default=(), description="tokens made more or less likely")
    unset: tuple[str, ...] = Field(
        default=(), description="fields above that hold a number nobody gave: the model's own defaults may replace it"
    )


class InferRequest(Message):
    """Gateway → one node, with the reply subject as NATS reply. Run this request and stream the answer."""

    type: Literal["llmlb.infer.request.v1"] = "llmlb.infer.request.v1"
    request_id: str = Field(description="the request's id, the same over all attempts")
    attempt: int = Field(default=0, ge=0, description="0 for the first node asked, then counting")
    model: str = Field(description="a name or alias that the node lists")
    kind: Literal["chat", "completion", "embedding"] = Field(description="which of the fields below holds the input")
    messages: tuple[ChatMessage, ...] = Field(default=(), description="the conversation, for chat")
    prompt: str | None = Field(default=None, description="the text to go on from, for completion")
    inputs: tuple[str | tuple[int, ...], ...] = Field(default=(), description="texts or token ids, for embedding")
    truncate: bool = Field(default=False, description="embedding: cut an input that is too long, at its end")
    sampling: Sampling = Field(default=Sampling(), description="how tokens are chosen")
    tools: tuple[Tool, ...] = Field(default=(), description="functions the model may call")
    tool_choice: Literal["auto", "none", "required"] = Field(default="auto", description="whether it may or must")
    tool_name: str | None = Field(default=None, description="the one tool it must call, with required")
    parallel_tool_calls: bool = Field(default=True, description="False: at most one call")
    response_format: ResponseFormat = Field(default=ResponseFormat(), description="form of the answer")
    think: bool | None = Field(default=None, description="for templates that can switch thinking; None: their default")
    template_kwargs: str = Field(default="{}", description="further variables for the template, a JSON object as text")
    deadline_ms: int | None = Field(default=None, ge=0, description="milliseconds left for the whole request")
    continuation: tuple[int, ...] = Field(default=(), description="ids of answer tokens that the client already has")
    count_only: bool = Field(
        default=False,
        description="only count the tokens of the prompt, also of one that is too long: an end at once, no slot. "
        "A node that does not know this answers, so max_tokens is to be 1",
    )

    @field_serializer("messages", mode="wrap")
    def _any_messages(self, messages: Sequence[ChatMessage], write: SerializerFunctionWrapHandler) -> Any:
        return write(tuple(messages))  # WrittenMessages too: pydantic knows nothing of them


class BulkInferRequest(Message):
    """Gateway → one node, as :class:`InferRequest`: one that is larger than a message, and lies in the object store."""

    type: Literal["llmlb.infer.bulk.v1"] = "llmlb.infer.bulk.v1"
    request_id: str = Field(description="the request's id, the same over all attempts")
    attempt: int = Field(default=0, ge=0, description="0 for the first node asked, then counting")
    model: str = Field(description="a name or alias that the node lists")
    object: str = Field(description="name of the object: the InferRequest; the gateway deletes it")
    size_bytes: int = Field(ge=0, description="its size")


class CancelRequest(Message):
    """Gateway → the node that runs it: nobody reads this any more. Frees the slot within one decode step."""

    type: Literal["llmlb.infer.cancel.v1"] = "llmlb.infer.cancel.v1"
    request_id: str = Field(description="the request to end; empty: nothing, the sender only asks who listens")
    attempt: int | None = Field(default=None, ge=0, description="the attempt to end; None: any")


TOKENS_MAX = 2**53
"""More is no count of tokens: a double does not hold it, nor, a little later, a database."""


class Usage(Part):
    """Tokens really used."""

    prompt_tokens: int = Field(ge=0, le=TOKENS_MAX, description="tokens of the rendered prompt")
    completion_tokens: int = Field(
        ge=0, le=TOKENS_MAX, description="tokens sampled, the end-of-turn token and thinking included"
    )
    reasoning_tokens: int = Field(default=0, ge=0, le=TOKENS_MAX, description="of those, tokens of thinking")
    cached_tokens: int = Field(default=0, ge=0, le=TOKENS_MAX, description="prompt tokens whose prefill was skipped")


class Timings(Part):
    """Where the time went on the node, in milliseconds."""

    load_ms: float = Field(default=0.0, description="waiting for the model to be loaded")
    queue_ms: float = Field(default=0.0, description="waiting for a slot")
    prefill_ms: float = Field(default=0.0, description="from slot to first token")
    decode_ms: float = Field(default=0.0, description="from first token to last")


class InferReply(Message):
    """Common to the replies."""

    request_id: str = Field(description="the request answered")
    seq: int = Field(ge=0, description="place in the stream, from 0")


class Accepted(InferReply):
    """Node → gateway, first: the request is here and will be worked on."""

    type: Literal["llmlb.infer.accepted.v1"] = "llmlb.infer.accepted.v1"
    node_id: str = Field(description="who answers")


class Progress(InferReply):
    """Node → gateway, at least once a second while no token comes: a sign of life."""

    type: Literal["llmlb.infer.progress.v1"] = "llmlb.infer.progress.v1"
    phase: Literal["loading", "queued", "prefill"] = Field(description="what is going on")
    done: int = Field(default=0, description="prompt tokens prefilled so far; percent while loading")
    total: int = Field(default=0, description="prompt tokens in all; 0 while unknown")
    wait_s: float | None = Field(default=None, description="estimate of what is left of the wait, in a queue")


class ToolCallPiece(Part):
    """A piece of a tool call. The first one of a call has its id and name."""

    index: int = Field(ge=0, description="which call of the answer, from 0")
    id: str | None = Field(default=None, description="the call's id, in its first piece")
    name: str | None = Field(default=None, description="the function's name, in its first piece")
    arguments: str = Field(default="", description="more of the JSON text of its arguments")


class TopLogprob(Part):
    """One candidate for a token."""

    token: str = Field(description="its text; what is not whole UTF-8 shows as U+FFFD")
    token_bytes: tuple[int, ...] = Field(description="its bytes")
    logprob: float = Field(description="natural logarithm of its probability, before temperature and filters")


class TokenLogprob(TopLogprob):
    """One token of the answer with its probability."""

    top: tuple[TopLogprob, ...] = Field(default=(), description="the most likely candidates, best first")


class Delta(InferReply):
    """Node → gateway: the next piece of the answer."""

    type: Literal["llmlb.infer.delta.v1"] = "llmlb.infer.delta.v1"
    text: str = Field(description="whole code points only; never part of a stop text")
    token_ids: tuple[int, ...] = Field(default=(), description="the tokens sampled since the last delta")
    reasoning: str = Field(default="", description="more of the thinking that comes before the answer")
    tool_calls: tuple[ToolCallPiece, ...] = Field(default=(), description="more of the tool calls")
    logprobs: tuple[TokenLogprob, ...] = Field(default=(), description="one for each token id, when asked for")


class Embedded(InferReply):
    """Node → gateway: the vector of one input."""

    type: Literal["llmlb.infer.embedded.v1"] = "llmlb.infer.embedded.v1"
    index: int = Field(ge=0, description="which input, from 0")
    vector: str = Field(description="float32, little-endian, base64")


class End(InferReply):
    """Node → gateway, last: the answer is whole."""

    type: Literal["llmlb.infer.end.v1"] = "llmlb.infer.end.v1"
    finish_reason: FinishReason = Field(
        description="stop: end of turn or stop text; length: max_tokens or context; tool_calls: it wants tools called"
    )
    usage: Usage = Field(description="tokens")
    timings: Timings = Field(default=Timings(), description="times")
    stop_text: str | None = Field(default=None, description="the stop text that ended the answer, if one did")


class Failed(InferReply):
    """Node → gateway, last: there will be no more. ``node_busy`` means it never started."""

    type: Literal["llmlb.infer.failed.v1"] = "llmlb.infer.failed.v1"
    error: WireError = Field(description="why")


AnyReply = Annotated[Accepted | Progress | Delta | Embedded | End | Failed, Field(discriminator="type")]
