"""Bodies of the OpenAI routes: validated once, in pydantic-core, from bytes.

Unknown fields are ignored; null means "not given"; what is known but not supported is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import ChatMessage, Sampling

MAX_MODEL_NAME = 256
MAX_STOP = 4
MAX_SHOWN = 200


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return value


Number = Annotated[float, BeforeValidator(_number)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StreamOptions(_Body):
    include_usage: StrictBool | None = None


class TextPart(_Body):
    type: Literal["text"]
    text: StrictStr


class InputMessage(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[dict[str, Any]] | None = None

    def text(self, index: int) -> str:
        """The content as one text. Raises InvalidRequest for a part that is not text."""
        if self.content is None:
            if self.role == "assistant":
                return ""
            raise InvalidRequest("content must be given", param=f"messages.{index}.content")
        if isinstance(self.content, str):
            return self.content
        texts: list[str] = []
        for number, part in enumerate(self.content):
            kind = part.get("type")
            where = f"messages.{index}.content.{number}"
            if kind in ("image_url", "input_audio", "file"):
                raise InvalidRequest(f"parts of type '{kind}' are not supported: this model takes text", param=where)
            if kind != "text" or not isinstance(part.get("text"), str):
                raise InvalidRequest('a content part must be {"type": "text", "text": "…"}', param=where)
            texts.append(part["text"])
        return "\n".join(texts)


class _Generate(_Body):
    model: StrictStr = Field(min_length=1, max_length=MAX_MODEL_NAME)
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    top_k: StrictInt | None = Field(default=None, ge=0, le=1_000_000)
    min_p: Number | None = Field(default=None, ge=0, le=1)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2)
    repeat_penalty: Number | None = Field(default=None, gt=0, le=4)
    seed: StrictInt | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    max_tokens: StrictInt | None = Field(default=None, ge=1, le=2**31 - 1)
    stop: StrictStr | list[StrictStr] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: StrictInt | None = Field(default=None, ge=1, le=128)
    logit_bias: dict[str, Any] | None = None

    def stops(self) -> tuple[str, ...]:
        """Raises InvalidRequest."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(texts) > MAX_STOP:
            raise InvalidRequest(f"stop: at most {MAX_STOP} texts", param="stop")
        if any(text == "" for text in texts):
            raise InvalidRequest("stop: a stop text must not be empty", param="stop")
        return tuple(texts)

    def sampling(self) -> Sampling:
        """Raises InvalidRequest."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repeat_penalty=self.repeat_penalty or 1.0,
            seed=self.seed,
            max_tokens=self.limit(),
            stop=self.stops(),
        )

    def limit(self) -> int | None:
        return self.max_tokens

    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_common(self) -> None:
        """Raises InvalidRequest for what is known and not supported."""
        _refuse("n", self.n not in (None, 1), "only n=1")
        _refuse("logit_bias", bool(self.logit_bias), None)
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options: only with stream=true", param="stream_options")


def _refuse(field: str, given: bool, instead: str | None) -> None:
    if given:
        more = f": {instead} works" if instead else ""
        raise InvalidRequest(f"{field} is not supported{more}", param=field)


class ChatRequest(_Generate):
    """POST /v1/chat/completions."""

    messages: list[InputMessage] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = Field(default=None, ge=1, le=2**31 - 1)
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None

    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def chat_messages(self) -> tuple[ChatMessage, ...]:
        """Raises InvalidRequest."""
        return tuple(ChatMessage(role=m.role, content=m.text(index)) for index, m in enumerate(self.messages))

    def check(self) -> None:
        """Raises InvalidRequest for what is known and not supported."""
        self.check_common()
        _refuse("tools", bool(self.tools), None)
        _refuse("tool_choice", self.tool_choice not in (None, "none", "auto"), None)
        _refuse("functions", bool(self.functions), None)
        format = (self.response_format or {}).get("type", "text")
        _refuse("response_format", format != "text", '{"type": "text"}')
        _refuse("logprobs", bool(self.logprobs), None)
        _refuse("top_logprobs", bool(self.top_logprobs), None)
        _refuse("modalities", self.modalities not in (None, ["text"]), '["text"]')
        _refuse("audio", self.audio is not None, None)
        _refuse("prediction", self.prediction is not None, None)


class CompletionRequest(_Generate):
    """POST /v1/completions."""

    prompt: StrictStr | list[Any] | None = None
    best_of: StrictInt | None = None
    echo: StrictBool | None = None
    suffix: StrictStr | None = None
    logprobs: StrictInt | None = None

    def text(self) -> str:
        """Raises InvalidRequest."""
        prompt = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise InvalidRequest("prompt: must be one text", param="prompt")
        if not prompt:
            raise InvalidRequest("prompt: must not be empty", param="prompt")
        return prompt

    def check(self) -> None:
        """Raises InvalidRequest for what is known and not supported."""
        self.check_common()
        _refuse("best_of", self.best_of not in (None, 1), "only best_of=1")
        _refuse("echo", bool(self.echo), None)
        _refuse("suffix", bool(self.suffix), None)
        _refuse("logprobs", bool(self.logprobs), None)


B = TypeVar("B", bound=BaseModel)


def parse(cls: type[B], body: bytes) -> B:
    """The body as ``cls``. Raises InvalidRequest with the dotted path of the first field at fault as ``param``."""
    if not body:
        raise InvalidRequest("the request body is empty; it must be a JSON object")
    try:
        return cls.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            reason = str(first.get("ctx", {}).get("error", ""))[:MAX_SHOWN]
            raise InvalidRequest(f"the request body is not valid JSON: {reason}") from None
        path = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            message = "must be given"
        if not path:
            raise InvalidRequest("the request body must be a JSON object") from None
        raise InvalidRequest(f"{path}: {message}"[:MAX_SHOWN], param=path) from None


def _is_branch(part: int | str) -> bool:
    """True for the parts of a location that name a branch of a union, not a field."""
    return isinstance(part, str) and ("[" in part or part in {"str", "float", "int", "bool", "dict", "list"})
