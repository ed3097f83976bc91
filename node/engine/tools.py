"""Tool calls in the text of an answer: the formats of the common template families. Pure.

A call goes out when it is whole, so a stream never carries arguments that are not JSON. What looked like a call and
turns out not to be one goes out as text: nothing is lost.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmlb.bus.messages.infer import Tool, ToolCallPiece
from llmlb.node.engine.streamer import possible_begin

_DECODER = json.JSONDecoder()
_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
_XML_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)</function>\s*", re.DOTALL)
_XML_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_RECIPIENT = re.compile(r"([A-Za-z0-9_.-]+)\n")


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
    return HERMES if format in (FUNCTIONARY, FUNCTIONARY_RECIPIENT) else format


def instructions(tools: Sequence[Tool]) -> str:
    """The system prompt that stands in for a template without tools."""
    return INSTRUCTIONS.format(tools="\n".join(json.dumps(as_openai(tool), ensure_ascii=False) for tool in tools))


def as_openai(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI's API has it, which is what templates expect."""
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def calls_schema(tools: Sequence[Tool], format: ToolFormat) -> dict[str, Any]:
    """The JSON schema of one call of any of the tools."""
    each = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                format.arguments_key: json.loads(tool.parameters) or {"type": "object"},
            },
            "required": ["name", format.arguments_key],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return each[0] if len(each) == 1 else {"anyOf": each}


class ToolReader:
    """Takes calls out of the text of an answer as it comes."""

    def __init__(self, format: ToolFormat, tools: Sequence[Tool]) -> None:
        self._format = format
        self._names = {tool.name for tool in tools}
        self._held = ""
        self._calling = False
        self._begun = format is FUNCTIONARY_RECIPIENT
        """True once the answer's first text was seen. Functionary's answers begin with a recipient."""
        if self._begun:
            self._held, self._calling, self._begun = ">>>", True, True
        self.count = 0
        """Calls given out so far."""

    def feed(self, text: str) -> tuple[str, list[ToolCallPiece]]:
        """More text: what of it is answer, and the calls that are whole now."""
        self._held += text
        out = ""
        calls: list[ToolCallPiece] = []
        while True:
            if not self._calling:
                more, found = self._look()
                out += more
                if not found:
                    return out, calls
            got = self._take()
            if got is None:
                return out, calls
            if isinstance(got, str):
                out += got
            else:
                calls += got

    def finish(self) -> tuple[str, list[ToolCallPiece]]:
        """It is over: the rest, parsed if it can be."""
        rest, self._held = self._held, ""
        if not self._calling:
            return rest, []
        calls = list(self._parse(self._body(rest), final=True))
        if calls:
            return "", self._number(calls)
        return rest.removeprefix(">>>").removeprefix("all\n") if self._format is FUNCTIONARY_RECIPIENT else rest, []

    def _look(self) -> tuple[str, bool]:
        """Outside of a call: the text up to where one may begin, and whether one begins there."""
        if self._format.bare and not self._begun:
            start = self._held.lstrip()
            if not start:
                return "", False
            self._begun = True
            if start[0] in "{[":
                self._calling = True
                return "", True
        self._begun = self._begun or bool(self._held.strip())
        at = min((at for at in (self._held.find(mark) for mark in self._format.opens) if at >= 0), default=-1)
        if at >= 0:
            out, self._held, self._calling = self._held[:at], self._held[at:], True
            return out.rstrip() if not out.strip() else out, True
        keep = possible_begin(self._held, self._format.opens)
        out, self._held = self._held[:keep], self._held[keep:]
        return out, False

    def _take(self) -> str | list[ToolCallPiece] | None:
        """Inside a call: its pieces when it is whole, text when it is none, None when more is needed."""
        if self._format is FUNCTIONARY_RECIPIENT:
            return self._take_recipient()
        if not self._format.close:
            return None  # ends with the answer
        end = self._held.find(self._format.close)
        if end < 0:
            return None
        end += len(self._format.close)
        whole, self._held, self._calling = self._held[:end], self._held[end:].lstrip("\n"), False
        calls = list(self._parse(self._body(whole), final=False))
        return self._number(calls) if calls else whole

    def _take_recipient(self) -> str | list[ToolCallPiece] | None:
        body = self._held.removeprefix(">>>")
        match = _RECIPIENT.match(body)
        if match is None:
            return None
        if match[1] == "all":
            self._held, self._calling = body[match.end() :], False
            return ""
        end = body.find(">>>")
        if end < 0:
            return None
        whole, self._held = body[:end], body[end:]
        calls = list(self._parse(whole, final=False))
        return self._number(calls) if calls else whole

    def _body(self, whole: str) -> str:
        """A call without its markers."""
        for mark in self._format.opens:
            if whole.startswith(mark) and mark != "<function=":
                whole = whole[len(mark) :]
                break
        return whole.removeprefix(">>>")

    def _parse(self, body: str, *, final: bool) -> Iterator[tuple[str, str]]:
        """The (name, arguments) in the text of calls; nothing when it does not parse."""
        if "<function=" in body:
            for match in _XML_FUNCTION.finditer(body):
                yield match[1], self._xml_arguments(match[2])
            return
        if final and self._format.close and body.rstrip().endswith(self._format.close):
            body = body.rstrip()[: -len(self._format.close)]
        at = 0
        while at < len(body):
            if body[at].isspace() or body[at] in ",;":
                at += 1
                continue
            named = _NAMED.match(body, at)
            start = named.end() if named else at
            try:
                value, at = _DECODER.raw_decode(body, start)
            except ValueError:
                return
            yield from self._calls_in(value, named[1] if named else None)

    @staticmethod
    def _xml_arguments(text: str) -> str:
        parameters = _XML_PARAMETER.findall(text)
        if not parameters:
            return text.strip() or "{}"
        values: dict[str, Any] = {}
        for key, value in parameters:
            try:
                values[key] = json.loads(value)
            except ValueError:
                values[key] = value
        return json.dumps(values, ensure_ascii=False)

    def _calls_in(self, value: Any, name: str | None) -> Iterator[tuple[str, str]]:
        if isinstance(value, list):
            for item in value:
                yield from self._calls_in(item, None)
            return
        if not isinstance(value, dict):
            return
        if name is not None:
            yield name, json.dumps(value, ensure_ascii=False)
            return
        if isinstance(value.get("tool_calls"), list):
            yield from self._calls_in(value["tool_calls"], None)
            return
        inner = value.get("function")
        if isinstance(inner, dict):
            value = inner
        called = value.get("name")
        arguments = value.get("arguments", value.get("parameters"))
        if not isinstance(called, str) or arguments is None:
            return
        if self._format.bare and called not in self._names:
            return
        yield called, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)

    def _number(self, calls: list[tuple[str, str]]) -> list[ToolCallPiece]:
        pieces = []
        for name, arguments in calls:
            identifier = f"call_{uuid.uuid4().hex[:24]}"
            pieces.append(ToolCallPiece(index=self.count, id=identifier, name=name, arguments=arguments))
            self.count += 1
        return pieces
