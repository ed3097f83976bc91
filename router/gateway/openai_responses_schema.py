"""The body of ``POST /v1/responses``. As :mod:`llmlb.router.gateway.openai_schema`: what is unknown is ignored, what
is known and not supported is refused by name. Source: OpenAI's API reference, "Responses".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest, ResponseFormat, Sampling, Tool
from llmlb.router.gateway.openai_messages import Body, ImageAddress
from llmlb.router.gateway.openai_responses_items import Item, conversation
from llmlb.router.gateway.openai_schema import MAX_MODEL_NAME, MAX_TOOLS, Number, refuse, top_p
from llmlb.router.gateway.openai_tools import Effort, FunctionBody, effort_wanted, json_text
from llmlb.router.gateway.parts_schema import FunctionTool, ItemIn

LOGPROBS = "message.output_text.logprobs"
_INCLUDED = frozenset({LOGPROBS, "reasoning.encrypted_content", "message.input_image.image_url"})
"""Reasoning items have their text, so that nothing encrypted is needed to send them back; images have their address."""
MAX_METADATA = 16


class ResponsesReasoning(Body):
    effort: Effort | None = Field(default=None, description="none and minimal switch thinking off")
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description="thinking is shown as a summary: its own text"
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description="older name of `summary`"
    )


class ResponsesFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = Field(
        description="text, any JSON object, or one of a schema; enforced"
    )
    name: StrictStr | None = Field(default=None, description="for people")
    description: StrictStr | None = Field(default=None, description="for people")
    schema_: dict[str, Any] | None = Field(default=None, alias="schema", description="needed for `json_schema`")
    strict: StrictBool | None = Field(default=None, description="without effect: the schema is always enforced")


class ResponsesText(Body):
    format: ResponsesFormat | None = Field(
        default=None, description="with tools too: the answer is calls of them, or has this form"
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(default=None, description="without effect")


_COUNT_EXAMPLE: dict[str, Any] = {"model": "smollm2", "input": "Why is the sky blue?"}
_EXAMPLE = {**_COUNT_EXAMPLE, "max_output_tokens": 64}


class CountBody(Body, json_schema_extra={"examples": [_COUNT_EXAMPLE]}):
    """POST /v1/responses/input_tokens; and what both routes have."""

    model: StrictStr = Field(
        min_length=1, max_length=MAX_MODEL_NAME, description="a model of `/v1/models`, or an alias"
    )
    input: StrictStr | list[ItemIn] = Field(
        default_factory=list, description="a text, or items: messages, function_call, function_call_output, reasoning"
    )
    instructions: StrictStr | None = Field(default=None, description="a system prompt for this answer alone")
    previous_response_id: StrictStr | None = Field(
        default=None, max_length=128, description="go on from this stored answer"
    )
    tools: list[FunctionTool] | None = Field(
        default=None, max_length=MAX_TOOLS, description="functions; built-in tools are refused"
    )
    tool_choice: StrictStr | dict[str, Any] | None = Field(
        default=None, description="`auto`, `none`, `required`, a function, or `allowed_tools`"
    )
    parallel_tool_calls: StrictBool | None = Field(default=None, description="false: one call in an answer at most")
    reasoning: ResponsesReasoning | None = Field(default=None, description="how much to think, and how it is shown")
    text: ResponsesText | None = Field(default=None, description="the form of the answer")
    truncation: Literal["auto", "disabled"] | None = Field(
        default=None, description="auto: what does not fit is tried again without its oldest turns"
    )
    conversation: Any = Field(default=None, description="refused: `previous_response_id` works")

    def sampling(self) -> Sampling:
        """For a count: a node that can't count makes one token, and says how many the prompt had."""
        return Sampling(max_tokens=1)

    def check(self) -> None:
        """Raises InvalidRequest for what is known and not supported."""
        refuse("conversation", self.conversation is not None, "previous_response_id")
        for index, tool in enumerate(self.tools or ()):
            if not isinstance(tool, dict):
                raise InvalidRequest("a tool must be an object", param=f"tools.{index}.type")

    def request(
        self, request_id: str, before: Sequence[Item], items: Sequence[Item], *, count_only: bool = False
    ) -> tuple[InferRequest, list[ImageAddress]]:
        """As the bus carries it, and the images that have to be fetched first. Raises InvalidRequest."""
        self.check()
        messages, images = conversation(self.instructions, before, items)
        tools = self.functions()
        choice, names = self._choice({tool.name for tool in tools})
        if names is not None:
            tools = tuple(tool for tool in tools if tool.name in names)
        form = self._format()
        think, told = effort_wanted(self.reasoning.effort if self.reasoning else None)
        request = InferRequest(
            request_id=request_id,
            model=self.model,
            kind="chat",
            messages=messages,
            sampling=self.sampling(),
            tools=tools,
            tool_choice=choice,
            tool_name=tools[0].name if choice == "required" and len(tools) == 1 else None,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_format=ResponseFormat() if choice == "required" else form,
            think=think,
            template_kwargs=json_text(told, "reasoning"),
            count_only=count_only,
        )
        return request, images

    def functions(self) -> tuple[Tool, ...]:
        """The tools as the bus carries them. Raises InvalidRequest."""
        return tuple(_tool(tool, f"tools.{index}") for index, tool in enumerate(self.tools or ()))

    def _choice(self, names: set[str]) -> tuple[Literal["auto", "none", "required"], set[str] | None]:
        """Whether a tool is to be called, and which ones may be; None: all."""
        choice = self.tool_choice
        if choice is None or choice in ("auto", "none"):
            return ("none" if choice == "none" else "auto"), None
        if not names:
            raise InvalidRequest("tool_choice: only with tools", param="tool_choice")
        if choice == "required":
            return "required", None
        if isinstance(choice, str):
            raise InvalidRequest('tool_choice: must be "none", "auto" or "required"', param="tool_choice")
        if choice.get("type") == "function":
            wanted, mode = [choice], "required"
        elif choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
            wanted, mode = choice["tools"], str(choice.get("mode"))
        else:
            kind = str(choice.get("type"))[:40]
            raise InvalidRequest(
                f"tool_choice: type '{kind}' is not supported: function and allowed_tools are", param="tool_choice"
            )
        found = [tool.get("name") for tool in wanted if isinstance(tool, dict)]
        if not found or not all(isinstance(name, str) and name in names for name in found):
            raise InvalidRequest("tool_choice: names what is not among the tools", param="tool_choice")
        return ("required" if mode == "required" else "auto"), {str(name) for name in found}

    def _format(self) -> ResponseFormat:
        format = self.text.format if self.text else None
        if format is None or format.type == "text":
            return ResponseFormat()
        if format.type == "json_object":
            return ResponseFormat(type="json_object")
        if format.schema_ is None:
            raise InvalidRequest("text.format.schema: must be given", param="text.format.schema")
        return ResponseFormat(type="json_schema", json_schema=json_text(format.schema_, "text.format.schema"))


class ResponsesRequest(CountBody, json_schema_extra={"examples": [_EXAMPLE]}):
    """POST /v1/responses."""

    max_output_tokens: StrictInt | None = Field(
        default=None, ge=1, le=2**31 - 1, description="tokens of the answer at most, thinking included"
    )
    temperature: Number | None = Field(
        default=None, ge=0, le=2, description="0: always the likeliest token; else the model's own"
    )
    top_p: Number | None = Field(default=None, ge=0, le=1, description="the likeliest tokens that make up this share")
    top_logprobs: StrictInt | None = Field(default=None, ge=0, le=20, description="candidates for each token")
    include: Annotated[list[StrictStr], Field(fail_fast=True)] | None = Field(
        default=None, description="`message.output_text.logprobs`, `reasoning.encrypted_content`"
    )
    metadata: dict[str, Any] | None = Field(default=None, description="kept with the answer: 16 texts at most")
    store: StrictBool | None = Field(default=None, description="false: the answer is not stored")
    stream: StrictBool | None = Field(default=None, description="true: as server-sent events")
    user: StrictStr | None = Field(default=None, description="without effect")
    safety_identifier: StrictStr | None = Field(default=None, description="without effect")
    prompt_cache_key: StrictStr | None = Field(default=None, description="without effect")
    background: StrictBool | None = Field(default=None, description="refused: `stream` works")
    prompt: Any = Field(default=None, description="refused: `instructions` works")
    moderation: Any = Field(default=None, description="refused")
    max_tool_calls: StrictInt | None = Field(
        default=None, ge=1, description="without effect: it counts calls of built-in tools"
    )

    def stored(self) -> bool:
        """Whether the answer is to be kept."""
        return self.store is not False

    def summarized(self) -> bool:
        """Whether thinking is to be shown as a summary."""
        return self.reasoning is not None and bool(self.reasoning.summary or self.reasoning.generate_summary)

    def alternatives(self) -> int | None:
        """Log probabilities asked for: None is off, else the number of candidates a token."""
        return self.top_logprobs or 0 if self.top_logprobs or LOGPROBS in (self.include or ()) else None

    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=top_p(self.top_p),
            max_tokens=self.max_output_tokens,
            logprobs=self.alternatives(),
            unset=("presence_penalty", "frequency_penalty", "repeat_penalty"),
        )

    def check(self) -> None:
        super().check()
        refuse("background", bool(self.background), "stream")
        refuse("prompt", self.prompt is not None, "instructions")
        refuse("moderation", self.moderation is not None, None)
        for index, what in enumerate(self.include or ()):
            if what not in _INCLUDED:
                raise InvalidRequest(f"include: '{what[:80]}' is not supported", param=f"include.{index}")
        metadata = self.metadata or {}
        if len(metadata) > MAX_METADATA or not all(isinstance(value, str) for value in metadata.values()):
            raise InvalidRequest(f"metadata: at most {MAX_METADATA} texts", param="metadata")

    def head(self) -> dict[str, Any]:
        """What the answer says of its request."""
        format = self.text.format if self.text else None
        shown = {"type": "text"} if format is None else format.model_dump(by_alias=True, exclude_none=True)
        reasoning = self.reasoning or ResponsesReasoning()
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "model": self.model,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "temperature": self.temperature,
            "text": {"format": shown, "verbosity": self.text.verbosity if self.text else None},
            "tool_choice": self.tool_choice or "auto",
            "tools": [_shown(tool) for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": self.truncation or "disabled",
            "user": self.user,
        }


class _Function(FunctionBody):
    type: Literal["function"]
    strict: StrictBool | None = None


def _tool(tool: Any, where: str) -> Tool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        shown = str(kind)[:60]
        raise InvalidRequest(f"tools of type '{shown}' are not supported: 'function' is", param=f"{where}.type")
    try:
        function = _Function.model_validate(tool)
    except ValueError as error:
        raise InvalidRequest("must have a name, and parameters that are an object", param=where) from error
    parameters = json_text(function.parameters or {"type": "object", "properties": {}}, where)
    return Tool(name=function.name, description=function.description or "", parameters=parameters)


def _shown(tool: Any) -> dict[str, Any]:
    """A tool as the answer shows it: with every field that its type has."""
    return {"description": None, "parameters": None, "strict": None, **tool}
