"""How the common template families write tool calls, and what enforces it. Pure.

What reads calls out of an answer is in :mod:`llmlb.node.engine.tool_reader`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmlb.bus.messages.infer import Tool


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one template family writes a call.

    ``opens``: texts that begin a call; ``close``: the text that ends it, "" where it ends with its JSON.
    ``bare``: an answer that begins with ``{`` or ``[`` is a call when it names one of the tools.
    """

    name: str
    opens: tuple[str, ...]
    close: str = ""
    bare: bool = False
    arguments_key: str = "arguments"
    before: str = ""
    """What the grammar writes before the JSON of a call, and after it."""
    after: str = ""


HERMES = ToolFormat("hermes", ("<tool_call>",), "</tool_call>", before="<tool_call>\n", after="\n</tool_call>")
LLAMA3 = ToolFormat("llama3", ("<|python_tag|>",), bare=True, arguments_key="parameters")
MISTRAL = ToolFormat("mistral", ("[TOOL_CALLS]",), before="[TOOL_CALLS][", after="]")
FUNCTIONARY = ToolFormat("functionary", ("<function=",), "</function>", before="", after="")
FUNCTIONARY_RECIPIENT = ToolFormat("functionary-recipient", (">>>",))
HARMONY = ToolFormat("harmony", ("<|call|>",))
"""gpt-oss. What its answers really look like is :mod:`llmlb.node.engine.reasoning`'s business, which writes a call as
``<|call|>``, its name, a line break and its arguments."""
RECIPIENTS = (FUNCTIONARY_RECIPIENT, HARMONY)
"""Formats that say who gets a text in a line before it."""

INSTRUCTIONS = (
    "You may call one or more functions to help with the user's request.\n"
    "These are the functions, as JSON, one a line:\n<tools>\n{tools}\n</tools>\n\n"
    "For each call answer with a JSON object with the function's name and arguments within <tool_call></tool_call> "
    'tags:\n<tool_call>\n{{"name": <function-name>, "arguments": <arguments-object>}}\n</tool_call>'
)
"""For a model whose template knows no tools. Worded after the Hermes function-calling prompt, which Qwen uses too."""


def format_of(template: str) -> tuple[ToolFormat, bool]:
    """The format of a chat template, and whether the template itself tells the model about the tools."""
    knows = "tools" in template
    if not knows:
        return HERMES, False
    if "[TOOL_CALLS]" in template:
        return MISTRAL, True
    if "<|channel|>" in template and "<|message|>" in template:
        return HARMONY, True
    if "<tool_call>" in template:
        return HERMES, True
    if ">>>all" in template or ">>>' + " in template:
        return FUNCTIONARY_RECIPIENT, True
    if "<function=" in template:
        return FUNCTIONARY, True
    if "<|python_tag|>" in template or "ipython" in template or '"parameters"' in template:
        return LLAMA3, True
    return replace(LLAMA3, name="json", arguments_key="arguments"), True


def enforced(format: ToolFormat) -> ToolFormat:
    """The format in which a grammar forces calls: a JSON object. Those that name outside of it take Hermes' way."""
    return HERMES if format in (FUNCTIONARY, *RECIPIENTS) else format


def instructions(tools: Sequence[Tool]) -> str:
    """The system prompt that stands in for a template without tools."""
    return INSTRUCTIONS.format(tools="\n".join(json.dumps(as_openai(tool), ensure_ascii=False) for tool in tools))


def as_openai(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI's API has it, which is what templates expect."""
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def calls_schema(tools: Sequence[Tool], format: ToolFormat) -> dict[str, Any]:
    """The JSON schema of one call of any of the tools."""
    each, definitions = [], {}
    for number, tool in enumerate(tools):
        parameters = json.loads(tool.parameters) or {"type": "object"}
        if isinstance(parameters, dict) and '"$ref"' in tool.parameters:
            # Its references count from its own root.
            parameters = _moved(parameters, f"#/$defs/tool{number}")
            definitions[f"tool{number}"] = parameters
        each.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, format.arguments_key: parameters},
                "required": ["name", format.arguments_key],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = each[0] if len(each) == 1 else {"anyOf": each}
    return {**schema, "$defs": definitions} if definitions else schema


def _moved(schema: Any, root: str) -> Any:
    """A schema with its references to itself leading to ``root``, where it is now."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
