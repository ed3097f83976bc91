"""Bodies of the OpenAI routes: validated once, in pydantic-core, from bytes.

Unknown fields are ignored; null means "not given"; what is known but not supported is refused by name. Lists fail at
their first bad item, and dicts have no typed values: a body of a million bad ones would hold the loop for seconds.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from pydantic_core import from_json

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.base import made
from llmlb.bus.messages.infer import InferRequest, LogitBias, ResponseFormat, Sampling
from llmlb.router.gateway.openai_messages import MAX_IMAGES, Body, ImageAddress, InputMessage, check_parts
from llmlb.router.gateway.openai_tools import Effort, ToolBody, chosen, effort_wanted, json_text

MAX_MODEL_NAME = 256
MAX_STOP = 64
"""OpenAI takes 4; editors that complete code send more, and llama-server and vLLM take any number."""
LEAST_TOP_P = 1e-9
"""What a top_p of 0 is taken for: the likeliest token alone."""
MAX_CHOICES = 128
MAX_TOOLS = 128
MAX_MESSAGES = 16_384
MAX_BIASES = 4096
MAX_SHOWN = 200
LONG_BYTES = 16 * 1024
LONGEST_BYTES = 512 * 1024
"""Of bodies that are made Python's first. Longer ones may hold millions of lists, which Python makes slowly."""


Number = StrictFloat
"""Takes integers too, and neither texts nor booleans."""


class StreamOptions(Body):
    include_usage: StrictBool | None = Field(
        default=None, description="true: the last event has the usage, and no choices"
    )


class SchemaBody(Body):
    name: StrictStr | None = Field(default=None, description="for people")
    schema_: dict[str, Any] = Field(alias="schema", description="the JSON schema")


class FormatBody(Body):
    type: Literal["text", "json_object", "json_schema"] = Field(
        description="text, any JSON object, or one of a schema; enforced"
    )
    json_schema: SchemaBody | None = Field(default=None, description="needed for `json_schema`")


def top_p(given: float | None) -> float | None:
    """As the bus carries it, which knows no 0."""
    return given if given is None else max(given, LEAST_TOP_P)


NEVER_NONE = ("presence_penalty", "frequency_penalty", "repeat_penalty")
"""Fields of Sampling that hold a number even when the client gave none."""


class _Generate(Body):
    model: StrictStr = Field(
        min_length=1, max_length=MAX_MODEL_NAME, description="a model of `/v1/models`, or an alias"
    )
    temperature: Number | None = Field(
        default=None, ge=0, le=2, description="0: always the likeliest token; else the model's own"
    )
    top_p: Number | None = Field(
        default=None, ge=0, le=1, description="the likeliest tokens that make up this share; else the model's own"
    )
    top_k: StrictInt | None = Field(
        default=None, ge=0, le=1_000_000, description="that many of the likeliest tokens; 0: all"
    )
    min_p: Number | None = Field(
        default=None, ge=0, le=1, description="tokens at least so likely as this share of the likeliest one"
    )
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2, description="against tokens that came already")
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2, description="against tokens that came often")
    repeat_penalty: Number | None = Field(default=None, gt=0, le=4, description="as llama.cpp has it; 1: off")
    seed: StrictInt | None = Field(
        default=None, ge=-(2**63), le=2**63 - 1, description="the same seed gives the same answer"
    )
    max_tokens: StrictInt | None = Field(
        default=None, ge=1, le=2**31 - 1, description="tokens of the answer at most; else what the context has room for"
    )
    stop: StrictStr | Annotated[list[StrictStr], Field(fail_fast=True)] | None = Field(
        default=None, description="texts that end the answer, 64 at most"
    )
    stream: StrictBool | None = Field(default=None, description="true: as server-sent events")
    stream_options: StreamOptions | None = Field(default=None, description="only with `stream`")
    n: StrictInt | None = Field(default=None, ge=1, le=MAX_CHOICES, description="answers wanted, to each prompt")
    logit_bias: dict[str, Any] | None = Field(default=None, description="token id to bias, -100 to 100")

    def stops(self) -> tuple[str, ...]:
        """Raises InvalidRequest."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(texts) > MAX_STOP:
            raise InvalidRequest(f"stop: at most {MAX_STOP} texts", param="stop")
        if any(text == "" for text in texts):
            raise InvalidRequest("stop: a stop text must not be empty", param="stop")
        return tuple(texts)

    def sampling(self, seed: int | None = None) -> Sampling:
        """``seed``: where the client gave none. Raises InvalidRequest."""
        given = self.__dict__  # asked by name, each costs a look for pydantic's own attributes
        fields: dict[str, Any] = {
            "temperature": given["temperature"],
            "top_p": top_p(given["top_p"]),
            "top_k": given["top_k"],
            "min_p": given["min_p"],
            "presence_penalty": given["presence_penalty"] or 0.0,
            "frequency_penalty": given["frequency_penalty"] or 0.0,
            "repeat_penalty": given["repeat_penalty"] or 1.0,
            "seed": seed if given["seed"] is None else given["seed"],
            "max_tokens": self.limit(),
            "stop": () if given["stop"] is None else self.stops(),
            "logprobs": self.alternatives(),
            "logit_bias": () if given["logit_bias"] is None else self.biases(),
            "unset": tuple([name for name in NEVER_NONE if given[name] is None]),
        }
        return made(Sampling, fields)

    def choices(self) -> int:
        """Answers asked for, to each prompt."""
        return self.n or 1

    def alternatives(self) -> int | None:
        """Log probabilities asked for: None is off, else the number of candidates a token."""
        return None

    def biases(self) -> tuple[LogitBias, ...]:
        """Raises InvalidRequest."""
        given = self.logit_bias or {}
        if len(given) > MAX_BIASES:
            raise InvalidRequest(f"logit_bias: at most {MAX_BIASES} tokens", param="logit_bias")
        biases = []
        for token, bias in given.items():
            if not (token.isascii() and token.isdecimal()) or len(token) > 9:
                raise InvalidRequest("logit_bias: keys must be token ids", param="logit_bias")
            if isinstance(bias, bool) or not isinstance(bias, int | float):
                raise InvalidRequest(f"logit_bias.{token}: must be a number", param=f"logit_bias.{token}")
            if not -100 <= bias <= 100:
                raise InvalidRequest("logit_bias: values must be between -100 and 100", param="logit_bias")
            biases.append(LogitBias(token_id=int(token), bias=bias))
        return tuple(biases)

    def limit(self) -> int | None:
        return self.max_tokens

    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_common(self) -> None:
        """Raises InvalidRequest for what is known and not supported."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options: only with stream=true", param="stream_options")


def refuse(field: str, given: bool, instead: str | None) -> None:
    """Raises InvalidRequest for a field that is known, not supported, and given."""
    if given:
        more = f": {instead} works" if instead else ""
        raise InvalidRequest(f"{field} is not supported{more}", param=field)


_CHAT_EXAMPLE: dict[str, Any] = {
    "model": "smollm2",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
}


class ChatRequest(_Generate, json_schema_extra={"examples": [_CHAT_EXAMPLE]}):
    """POST /v1/chat/completions."""

    messages: list[InputMessage] = Field(
        min_length=1, max_length=MAX_MESSAGES, fail_fast=True, description="the conversation, oldest first"
    )
    max_completion_tokens: StrictInt | None = Field(
        default=None, ge=1, le=2**31 - 1, description="as `max_tokens`; goes before it"
    )
    tools: list[ToolBody] | None = Field(
        default=None, max_length=MAX_TOOLS, fail_fast=True, description="functions that the model may call"
    )
    tool_choice: StrictStr | dict[str, Any] | None = Field(
        default=None,
        description='`none`, `auto`, `required`, `{"type": "function", "function": {"name": "…"}}`, or `allowed_tools`',
    )
    parallel_tool_calls: StrictBool | None = Field(default=None, description="false: one call in an answer at most")
    functions: list[Any] | None = Field(default=None, description="refused: `tools` works")
    function_call: Any = Field(default=None, description="refused: `tool_choice` works")
    response_format: FormatBody | None = Field(
        default=None, description="with tools too: the answer is calls of them, or has this form"
    )
    logprobs: StrictBool | None = Field(default=None, description="true: with the log probability of each token")
    top_logprobs: StrictInt | None = Field(
        default=None, ge=0, le=20, description="candidates for each token; only with `logprobs`"
    )
    think: StrictBool | None = Field(
        default=None, description="whether a model that can think is to; else as its template has it"
    )
    reasoning_effort: Effort | None = Field(
        default=None, description="none and minimal switch thinking off, all others on; `think` goes before it"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="handed to the model's chat template")
    modalities: list[Any] | None = Field(default=None, description='`["text"]`; all else is refused')
    audio: Any = Field(default=None, description="refused")
    prediction: Any = Field(default=None, description="refused")
    web_search_options: Any = Field(default=None, description="refused")
    moderation: Any = Field(default=None, description="refused")

    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def alternatives(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs: only with logprobs=true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def request(self, request_id: str, seed: int | None = None) -> tuple[InferRequest, list[ImageAddress]]:
        """As the bus carries it, and the images that have to be fetched first. Raises InvalidRequest.

        ``seed``: where the client gave none.
        """
        self.check()
        images: list[ImageAddress] = []
        check_parts(sum([message.pieces() for message in self.messages]), "messages")
        messages = tuple([message.message(index, images) for index, message in enumerate(self.messages)])
        if sum([part.type == "image" for message in messages if message.parts for part in message.parts]) > MAX_IMAGES:
            raise InvalidRequest(f"messages: at most {MAX_IMAGES} images", param="messages")
        fields = {
            "sent_at": time.time(),
            "request_id": request_id,
            "model": self.model,
            "kind": "chat",
            "messages": messages,
            "sampling": self.sampling(seed),
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "think": self.think,
        }
        if self.tools or self.tool_choice is not None:
            tools = self.tools or ()
            fields["tool_choice"], fields["tool_name"], names = chosen(self.tool_choice, tools)
            fields["tools"] = tuple(tool.tool() for tool in tools if names is None or tool.function.name in names)
        if self.response_format is not None:
            form = self._format()
            if fields.get("tool_choice") != "required":  # such an answer is a call, and has no other form
                fields["response_format"] = form
        if self.reasoning_effort is not None or self.chat_template_kwargs:
            think, told = effort_wanted(self.reasoning_effort)
            fields["think"] = think if self.think is None else self.think
            fields["template_kwargs"] = json_text({**told, **(self.chat_template_kwargs or {})}, "chat_template_kwargs")
        return made(InferRequest, fields), images

    def _format(self) -> ResponseFormat:
        format = self.response_format
        if format is None or format.type == "text":
            return ResponseFormat()
        if format.type == "json_object":
            return ResponseFormat(type="json_object")
        if format.json_schema is None:
            raise InvalidRequest("response_format.json_schema: must be given", param="response_format.json_schema")
        schema = json_text(format.json_schema.schema_, "response_format")
        return ResponseFormat(type="json_schema", json_schema=schema)

    def check(self) -> None:
        """Raises InvalidRequest for what is known and not supported."""
        self.check_common()
        refuse("functions", bool(self.functions), "tools")
        refuse("function_call", self.function_call is not None, "tool_choice")
        refuse("modalities", self.modalities not in (None, ["text"]), '["text"]')
        refuse("audio", self.audio is not None, None)
        refuse("prediction", self.prediction is not None, None)
        refuse("web_search_options", self.web_search_options is not None, None)
        refuse("moderation", self.moderation is not None, None)


_COMPLETION_EXAMPLE = {"model": "smollm2", "max_tokens": 64, "prompt": "The sky is blue because"}


class CompletionRequest(_Generate, json_schema_extra={"examples": [_COMPLETION_EXAMPLE]}):
    """POST /v1/completions."""

    prompt: StrictStr | list[Any] | None = Field(default=None, description="a text to go on from, or a list of them")
    best_of: StrictInt | None = Field(default=None, description="refused, but for 1")
    echo: StrictBool | None = Field(default=None, description="refused, but for false")
    suffix: StrictStr | None = Field(default=None, description="refused, but for an empty one")
    logprobs: StrictInt | None = Field(default=None, ge=0, le=5, description="candidates for each token")

    def alternatives(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str]:
        """The texts to go on from. Raises InvalidRequest."""
        prompts: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise InvalidRequest("prompt: must be a text or a list of texts", param="prompt")
        if not all(prompts):
            raise InvalidRequest("prompt: must not be empty", param="prompt")
        if len(prompts) * self.choices() > MAX_CHOICES:
            raise InvalidRequest(f"prompt: at most {MAX_CHOICES} answers in one request", param="prompt")
        return prompts

    def request(self, request_id: str) -> InferRequest:
        """As the bus carries it, for the first prompt. Raises InvalidRequest."""
        self.check()
        return InferRequest(
            request_id=request_id,
            model=self.model,
            kind="completion",
            prompt=self.prompts()[0],
            sampling=self.sampling(),
        )

    def check(self) -> None:
        """Raises InvalidRequest for what is known and not supported."""
        self.check_common()
        refuse("best_of", self.best_of not in (None, 1), "only best_of=1")
        refuse("echo", bool(self.echo), None)
        refuse("suffix", bool(self.suffix), None)


B = TypeVar("B", bound=BaseModel)


def parse(cls: type[B], body: bytes) -> B:
    """The body as ``cls``. Raises InvalidRequest with the dotted path of the first field at fault as ``param``."""
    if not body:
        raise InvalidRequest("the request body is empty; it must be a JSON object")
    try:
        parsed = _long(cls, body) if LONG_BYTES <= len(body) <= LONGEST_BYTES else None
        return cls.model_validate_json(body) if parsed is None else parsed
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            reason = str(first.get("ctx", {}).get("error", ""))[:MAX_SHOWN]
            raise InvalidRequest(f"the request body is not valid JSON: {reason}") from None
        path = ".".join(str(part) for part in first["loc"] if not _is_branch(part))[:MAX_SHOWN]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            message = "must be given"
        if not path:
            raise InvalidRequest("the request body must be a JSON object") from None
        raise InvalidRequest(f"{path}: {message}"[:MAX_SHOWN], param=path) from None


def _long(cls: type[B], body: bytes) -> B | None:
    """The same for a body with long texts. None: it is not good, for whatever reason.

    It is the same parser, which makes Python's texts at once, where validating from bytes makes Rust's first: 14 µs in
    place of 25 for an image of 100 KB, 24 in place of 30 for 64 KB of prose.
    """
    try:
        return cls.__pydantic_validator__.validate_python(from_json(body, cache_strings="keys"))  # type: ignore[no-any-return]
    except ValueError:
        return None


def _is_branch(part: int | str) -> bool:
    """True for the parts of a location that name a branch of a union, not a field."""
    return isinstance(part, str) and ("[" in part or part in {"str", "float", "int", "bool", "dict", "list"})
