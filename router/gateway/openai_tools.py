"""Tools, and how hard to think, of OpenAI's routes. Source: OpenAI's API reference, "Chat" and "Responses"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, StrictStr

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import Tool
from llmlb.router.gateway.openai_messages import Body

Mode = Literal["auto", "none", "required"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
NO_EFFORT = ("none", "minimal")
"""They switch thinking off; the others on."""
TEMPLATE_EFFORTS = ("low", "medium", "high")
"""Those that templates of models know, as ``reasoning_effort``."""
_CHOICES = (
    'tool_choice: must be "none", "auto", "required", {"type": "function", "function": {"name": "…"}} '
    'or {"type": "allowed_tools", …}'
)


def json_text(value: Any, param: str) -> str:
    """JSON text of what came as JSON. Raises InvalidRequest for NaN and Infinity, which pydantic's parser lets in.

    Not orjson: it writes NaN as null, and refuses integers of more than 64 bits.
    """
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError:
        raise InvalidRequest(f"{param}: NaN and Infinity are not JSON", param=param) from None
    except RecursionError:
        raise InvalidRequest(f"{param}: nested too deeply", param=param) from None


class FunctionBody(Body):
    name: StrictStr = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="what the model calls it")
    description: StrictStr | None = Field(default=None, description="what it does, for the model")
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of its arguments")


class ToolBody(Body):
    type: Literal["function"] = Field(description="the one kind there is")
    function: FunctionBody = Field(description="the function")

    def tool(self) -> Tool:
        """As the bus carries it."""
        parameters = json_text(self.function.parameters or {"type": "object", "properties": {}}, "tools")
        return Tool(name=self.function.name, description=self.function.description or "", parameters=parameters)


def chosen(choice: str | dict[str, Any] | None, tools: Sequence[ToolBody]) -> tuple[Mode, str | None, set[str] | None]:
    """Whether a tool is to be called, the one that must be, and those that may be; None: all. Raises InvalidRequest."""
    if choice is None or choice in ("auto", "none"):
        return ("none" if choice == "none" else "auto"), None, None
    if not tools:
        raise InvalidRequest("tool_choice: only with tools", param="tool_choice")
    if choice == "required":
        return "required", None, None
    if isinstance(choice, str):
        raise InvalidRequest(_CHOICES, param="tool_choice")
    known = {tool.function.name for tool in tools}
    if choice.get("type") == "allowed_tools":
        mode, names = _allowed(choice.get("allowed_tools"), known)
        return mode, next(iter(names)) if mode == "required" and len(names) == 1 else None, names
    name = _name(choice)
    if name not in known:
        raise InvalidRequest(f"tool_choice: '{name[:64]}' is not among the tools", param="tool_choice")
    return "required", name, None


def _allowed(given: Any, known: set[str]) -> tuple[Mode, set[str]]:
    if not isinstance(given, dict) or given.get("mode") not in ("auto", "required"):
        raise InvalidRequest('must be "auto" or "required"', param="tool_choice.allowed_tools.mode")
    tools = given.get("tools")
    names = {_name(tool) for tool in tools} if isinstance(tools, list) else set()
    if not names or not names <= known:
        raise InvalidRequest("must name some of the tools", param="tool_choice.allowed_tools.tools")
    return given["mode"], names


def _name(choice: Any) -> str:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidRequest(_CHOICES, param="tool_choice")
    return name


def effort_wanted(effort: str | None) -> tuple[bool | None, dict[str, Any]]:
    """Whether to think (None: as the model's template has it), and what its template is told."""
    if effort is None:
        return None, {}
    return effort not in NO_EFFORT, {"reasoning_effort": effort} if effort in TEMPLATE_EFFORTS else {}
