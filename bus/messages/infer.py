"""The inference stream: one request to one node, numbered replies back to one inbox.

``accepted`` → ``progress``… → ``delta``… → exactly one ``end`` or ``failed``. ``seq`` counts from 0 without gaps over
all of them; a gap, or silence longer than the stall limit, is a failure and never a short answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmlb.bus.messages.base import Message, Part
from llmlb.bus.messages.errors import WireError


class ChatMessage(Part):
    """One turn of a conversation."""

    role: str = Field(description="system, developer, user, assistant or tool")
    content: str = Field(description="the text")


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
    stop: tuple[str, ...] = Field(default=(), description="texts that end the answer and are not part of it")


class InferRequest(Message):
    """Gateway → one node, with the reply subject as NATS reply. Run this request and stream the answer."""

    type: Literal["llmlb.infer.request.v1"] = "llmlb.infer.request.v1"
    request_id: str = Field(description="the request's id, the same over all attempts")
    attempt: int = Field(default=0, ge=0, description="0 for the first node asked, then counting")
    model: str = Field(description="a name or alias that the node lists")
    kind: Literal["chat", "completion"] = Field(description="which of the fields below holds the input")
    messages: tuple[ChatMessage, ...] = Field(default=(), description="the conversation, for chat")
    prompt: str | None = Field(default=None, description="the text to go on from, for completion")
    sampling: Sampling = Field(default=Sampling(), description="how tokens are chosen")
    deadline_ms: int | None = Field(default=None, ge=0, description="milliseconds left for the whole request")
    continuation: tuple[int, ...] = Field(default=(), description="ids of answer tokens that the client already has")


class CancelRequest(Message):
    """Gateway → the node that runs it: nobody reads this any more. Frees the slot within one decode step."""

    type: Literal["llmlb.infer.cancel.v1"] = "llmlb.infer.cancel.v1"
    request_id: str = Field(description="the request to end")


class Usage(Part):
    """Tokens really used."""

    prompt_tokens: int = Field(ge=0, description="tokens of the rendered prompt")
    completion_tokens: int = Field(ge=0, description="tokens sampled, the end-of-turn token included")
    cached_tokens: int = Field(default=0, ge=0, description="prompt tokens whose prefill was skipped")


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
    done: int = Field(default=0, description="prompt tokens prefilled so far")
    total: int = Field(default=0, description="prompt tokens in all; 0 while unknown")


class Delta(InferReply):
    """Node → gateway: the next piece of the answer."""

    type: Literal["llmlb.infer.delta.v1"] = "llmlb.infer.delta.v1"
    text: str = Field(description="whole code points only; never part of a stop text")
    token_ids: tuple[int, ...] = Field(default=(), description="the tokens sampled since the last delta")


class End(InferReply):
    """Node → gateway, last: the answer is whole."""

    type: Literal["llmlb.infer.end.v1"] = "llmlb.infer.end.v1"
    finish_reason: Literal["stop", "length"] = Field(
        description="stop: end of turn or stop text; length: max_tokens or context"
    )
    usage: Usage = Field(description="tokens")
    timings: Timings = Field(default=Timings(), description="times")


class Failed(InferReply):
    """Node → gateway, last: there will be no more. ``node_busy`` means it never started."""

    type: Literal["llmlb.infer.failed.v1"] = "llmlb.infer.failed.v1"
    error: WireError = Field(description="why")


AnyReply = Annotated[Accepted | Progress | Delta | End | Failed, Field(discriminator="type")]
