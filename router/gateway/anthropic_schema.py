"""Bodies of Anthropic's routes. As :mod:`llmlb.router.gateway.openai_schema`: what is unknown is ignored, what is
known and not supported is refused by name. Source: Anthropic's API reference, "Messages" and "Count tokens".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest, ResponseFormat, Sampling, Tool
from llmlb.router.gateway.anthropic_messages import AnthropicMessage, conversation
from llmlb.router.gateway.openai_messages import Body, ImageAddress
from llmlb.router.gateway.openai_schema import MAX_MESSAGES, MAX_MODEL_NAME, MAX_TOOLS, Number, refuse, top_p
from llmlb.router.gateway.openai_tools import Effort, effort_wanted, json_text
from llmlb.router.gateway.parts_schema import TextBlock

MAX_STOPS = 64


class AnthropicTool(Body):
    """A tool. Those that Anthropic's models know by their type alone have no schema, and are refused."""

    type: StrictStr | None = Field(
        default=None, description="`custom`; those that Anthropic's models know by type are refused"
    )
    name: StrictStr = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$", description="what the model calls it")
    description: StrictStr | None = Field(default=None, description="what it does, for the model")
    input_schema: dict[str, Any] | None = Field(default=None, description="JSON schema of its arguments; needed")

    def tool(self, index: int) -> Tool:
        """As the bus carries it. Raises InvalidRequest."""
        if self.type not in (None, "custom"):
            param = f"tools.{index}.type"
            raise InvalidRequest(f"tools of type '{self.type}' are not supported: 'custom' is", param=param)
        if self.input_schema is None:
            raise InvalidRequest("must be given", param=f"tools.{index}.input_schema")
        schema = json_text(self.input_schema, f"tools.{index}.input_schema")
        return Tool(name=self.name, description=self.description or "", parameters=schema)


class AnthropicToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"] = Field(description="any: some tool must be called; tool: this one")
    name: StrictStr | None = Field(default=None, description="needed for `tool`")
    disable_parallel_tool_use: StrictBool | None = Field(
        default=None, description="true: one call in an answer at most"
    )


class AnthropicThinking(Body):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"] = Field(
        description="adaptive and between_tools: as the model's template has it"
    )
    budget_tokens: StrictInt | None = Field(
        default=None, ge=1, description="needed for `enabled`: tokens of thinking at most, then the answer is begun"
    )
    display: Literal["summarized", "omitted"] | None = Field(default=None, description="omitted: its text is left out")


class AnthropicFormat(Body):
    type: Literal["json_schema"] = Field(description="the one kind there is")
    schema_: dict[str, Any] = Field(alias="schema", description="the JSON schema; enforced")


class AnthropicOutputConfig(Body):
    effort: Effort | None = Field(
        default=None, description="low, medium and high reach the model's template, where it is to think"
    )
    format: AnthropicFormat | None = Field(
        default=None, description="with tools too: the answer is calls of them, or this"
    )


_EXAMPLE: dict[str, Any] = {
    "model": "smollm2",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
}
_COUNT_EXAMPLE = {name: value for name, value in _EXAMPLE.items() if name != "max_tokens"}


class CountRequest(Body, json_schema_extra={"examples": [_COUNT_EXAMPLE]}):
    """POST /v1/messages/count_tokens; and what both routes have."""

    model: StrictStr = Field(
        min_length=1, max_length=MAX_MODEL_NAME, description="a model of `/v1/models`, or an alias"
    )
    messages: list[AnthropicMessage] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description="the conversation, oldest first; the last turn is the user's",
    )
    system: StrictStr | list[TextBlock] | None = Field(default=None, description="a text, or blocks of text")
    tools: list[AnthropicTool] | None = Field(
        default=None, max_length=MAX_TOOLS, fail_fast=True, description="functions that the model may call"
    )
    tool_choice: AnthropicToolChoice | None = Field(default=None, description="whether it must")
    thinking: AnthropicThinking | None = Field(default=None, description="off unless it is given")
    output_config: AnthropicOutputConfig | None = Field(default=None, description="the form of the answer")
    output_format: AnthropicFormat | None = Field(default=None, description="older name of `output_config.format`")
    container: Any = Field(default=None, description="refused")
    thread: Any = Field(default=None, description="refused, in the way that clients know: they send all turns then")
    compaction: Any = Field(default=None, description="refused")
    mcp_servers: list[Any] | None = Field(default=None, description="refused: `tools` works")

    def sampling(self) -> Sampling:
        """For a count: a node that can't count makes one token, and says how many the prompt had."""
        return Sampling(max_tokens=1)

    def request(self, request_id: str, *, count_only: bool = False) -> tuple[InferRequest, list[ImageAddress]]:
        """As the bus carries it, and the images that have to be fetched first. Raises InvalidRequest."""
        refuse("container", self.container is not None, None)
        refuse("thread", self.thread is not None, "a conversation with all its turns")
        refuse("compaction", self.compaction is not None, None)
        refuse("mcp_servers", bool(self.mcp_servers), "tools")
        messages, images = conversation(self.system, self.messages)
        tools = tuple(tool.tool(index) for index, tool in enumerate(self.tools or ()))
        choice, tool_name = self._choice()
        think = self._think()
        told = effort_wanted(self.output_config.effort if self.output_config else None)[1]
        request = InferRequest(
            request_id=request_id,
            model=self.model,
            kind="chat",
            messages=messages,
            sampling=self.sampling(),
            tools=tools,
            tool_choice=choice,
            tool_name=tool_name,
            parallel_tool_calls=not (self.tool_choice and self.tool_choice.disable_parallel_tool_use),
            response_format=self._format(),
            think=think,
            template_kwargs="{}" if think is False else json_text(told, "output_config.effort"),
            count_only=count_only,
        )
        return request, images

    def _choice(self) -> tuple[Literal["auto", "none", "required"], str | None]:
        choice = self.tool_choice
        if choice is None or choice.type == "auto":
            return "auto", None
        if choice.type == "none":
            return "none", None
        if not self.tools:
            raise InvalidRequest("only with tools", param="tool_choice")
        if choice.type == "any":
            return "required", None
        if choice.name not in {tool.name for tool in self.tools}:
            raise InvalidRequest("must be the name of one of the tools", param="tool_choice.name")
        return "required", choice.name

    def _format(self) -> ResponseFormat:
        format = self.output_config.format if self.output_config else None
        format = format or self.output_format
        if format is None:
            return ResponseFormat()
        if self.tool_choice and self.tool_choice.type in ("any", "tool"):
            return ResponseFormat()  # the answer is a call
        return ResponseFormat(type="json_schema", json_schema=json_text(format.schema_, "output_config.format.schema"))

    def _think(self) -> bool | None:
        """Off unless asked for, as Anthropic has it. None: as the model's template has it."""
        if self.thinking is None or self.thinking.type == "disabled":
            return False
        if self.thinking.type == "enabled":
            if self.thinking.budget_tokens is None:
                raise InvalidRequest("must be given", param="thinking.budget_tokens")
            return True
        return None


class MessagesRequest(CountRequest, json_schema_extra={"examples": [_EXAMPLE]}):
    """POST /v1/messages."""

    max_tokens: StrictInt = Field(ge=1, le=2**31 - 1, description="tokens of the answer at most, thinking included")
    temperature: Number | None = Field(
        default=None, ge=0, le=2, description="0: always the likeliest token; else the model's own"
    )
    top_p: Number | None = Field(default=None, ge=0, le=1, description="the likeliest tokens that make up this share")
    top_k: StrictInt | None = Field(
        default=None, ge=0, le=1_000_000, description="that many of the likeliest tokens; 0: all"
    )
    stop_sequences: Annotated[list[StrictStr], Field(fail_fast=True)] | None = Field(
        default=None, description="texts that end the answer, 64 at most"
    )
    stream: StrictBool | None = Field(default=None, description="true: as server-sent events")
    metadata: dict[str, Any] | None = Field(default=None, description="ignored")

    def sampling(self) -> Sampling:
        """Raises InvalidRequest."""
        stops = self.stop_sequences or []
        if len(stops) > MAX_STOPS:
            raise InvalidRequest(f"at most {MAX_STOPS} texts", param="stop_sequences")
        for index, stop in enumerate(stops):
            if not stop.strip():
                raise InvalidRequest("must not be only white space", param=f"stop_sequences.{index}")
        return Sampling(
            temperature=self.temperature,
            top_p=top_p(self.top_p),
            top_k=self.top_k,
            max_tokens=self.max_tokens,
            thinking_tokens=self.thinking.budget_tokens if self.thinking is not None and self._think() else None,
            stop=tuple(stops),
            unset=("presence_penalty", "frequency_penalty", "repeat_penalty"),
        )

    def thinking_shown(self) -> bool:
        return self.thinking is None or self.thinking.display != "omitted"
