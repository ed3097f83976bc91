"""The grammar that an answer must follow: a JSON schema, any JSON object, or calls of tools.

llama-cpp-python makes the GBNF of a schema. What it gets wrong is put right here, before and after: texts that need
JSON's escapes (llama.cpp's own converter escapes the backslash, its translation to Python does not), references
whose last names are alike, and control characters within texts, which no JSON parser takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.node.engine.prompts import RenderedPrompt
from llmlb.node.engine.tools import calls_schema

OfSchema = Callable[[str], str]
_ROOT = re.compile(r"^root ::=", re.MULTILINE)
_CALL = "one-call-of-a-tool"
_CALLS = "calls-of-tools"
_FORM = "form-of-the-answer"
_NAME = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[A-Za-z][A-Za-z0-9-]*')
"""A literal, a class of characters, or the name of a rule."""
_PLAIN = re.compile(r"[ !#-\[\]-~]*")
"""Printable ASCII without quote and backslash: a text that every converter gets right."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values map names to schemas."""
_ANYTHING = {"type": ["object", "array", "string", "number", "boolean", "null"]}
"""What a schema without demands stands for; the converter takes it for an object."""


def grammar_for(request: InferRequest, prompt: RenderedPrompt, of_schema: OfSchema) -> str | None:
    """The GBNF with rule ``root``, or None when the answer is free. ``of_schema`` makes that of a JSON schema.

    Where tools may be called and the answer has a form, it is either calls or of that form. Raises InvalidRequest when
    it can't be enforced.
    """
    if prompt.tools and request.tool_choice == "required":
        return _calls(request, prompt, of_schema)
    form = _form(request, of_schema)
    if form is None or not prompt.tools:
        return form
    calls = _ROOT.sub(f"{_CALLS} ::=", _calls(request, prompt, of_schema), count=1)
    form = _NAME.sub(lambda match: match[0] if match[0][0] in '"[' else f"{_FORM}-{match[0]}", form)
    return f"root ::= {_CALLS} | {_FORM}-root\n{calls}\n{form}"


def _calls(request: InferRequest, prompt: RenderedPrompt, of_schema: OfSchema) -> str:
    format = prompt.format
    rules = _ROOT.sub(f"{_CALL} ::=", schema_gbnf(calls_schema(prompt.tools, format), of_schema))
    before, after = json.dumps(format.before), json.dumps(format.after)
    more = request.parallel_tool_calls
    if format.before.endswith("["):
        calls = f'{_CALL} ("," {_CALL})*' if more else _CALL
        root = f"{before} {calls} {after}"
    elif format.before:
        one = f"{before} {_CALL} {after}"
        root = f'{one} ("\\n" {one})*' if more else one
    else:
        root = _CALL
    return f"root ::= {root}\n{rules}"


def _form(request: InferRequest, of_schema: OfSchema) -> str | None:
    if request.response_format.type == "json_object":
        return schema_gbnf({"type": "object"}, of_schema)
    if request.response_format.type == "json_schema":
        try:
            schema = json.loads(request.response_format.json_schema or "{}")
        except (ValueError, RecursionError):
            raise InvalidRequest("the JSON schema is not JSON", param="response_format") from None
        return schema_gbnf(schema, of_schema)
    return None


def schema_gbnf(schema: Any, of_schema: OfSchema) -> str:
    """The GBNF of a JSON schema. Raises InvalidRequest when it can't be enforced."""
    try:
        texts: dict[str, str] = {}
        plain = _marked(_References(schema).schema, texts)
        rules = of_schema(json.dumps(plain))
    except RecursionError:
        raise InvalidRequest("the JSON schema is nested too deeply", param="response_format") from None
    for text, mark in texts.items():
        escaped = json.dumps(json.dumps(text, ensure_ascii=False)[1:-1], ensure_ascii=False)[1:-1]
        rules = rules.replace(f'\\"{mark}\\"', f'\\"{escaped}\\"')
    rules = rules.replace('char ::= [^"\\\\] |', 'char ::= [^"\\\\\\x7F\\x00-\\x1F] |')
    return rules.replace("dot ::= [^\\x0A\\x0D]", 'dot ::= [^"\\\\\\x7F\\x00-\\x1F]')


class _References:
    """A schema whose references all lead to definitions at its top, each with a name of its own.

    The converter tells them apart by the last part of their path only, and follows no path through a list.
    """

    def __init__(self, schema: Any) -> None:
        self._root = schema
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}
        self.schema = self._rewritten(schema)
        if isinstance(schema, dict) and isinstance(schema.get("$ref"), str) and self._definitions:
            self.schema = self._definitions["definition-0"]  # it finds nothing beside a reference at the top
        if self._definitions:
            self.schema = {**self.schema, "$defs": self._definitions}

    def _rewritten(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._rewritten(item) for item in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return {key: value if key in ("const", "enum") else self._rewritten(value) for key, value in node.items()}
        name = self._names.get(reference)
        if name is None:
            name = self._names[reference] = f"definition-{len(self._names)}"
            self._definitions[name] = self._rewritten(self._found(reference))
        return {"$ref": f"#/$defs/{name}"}

    def _found(self, reference: str) -> Any:
        """What a reference leads to. Source: RFC 6901."""
        node = self._root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, dict) and key in node:
                node = node[key]
            else:
                raise InvalidRequest(f"the JSON schema has no '{reference}'", param="response_format")
        return node


def _marked(schema: Any, texts: dict[str, str]) -> Any:
    """A schema with marks for the texts in it that the converter would get wrong; ``texts`` gets text: mark."""

    def mark(text: str) -> str:
        return text if _PLAIN.fullmatch(text) else texts.setdefault(text, f"llmlb-text-{len(texts)}-end")

    def literal(value: Any) -> Any:
        if isinstance(value, str):
            return mark(value)
        if isinstance(value, list):
            return [literal(item) for item in value]
        return {mark(key): literal(item) for key, item in value.items()} if isinstance(value, dict) else value

    def visit(node: Any) -> Any:
        if isinstance(node, list):
            return [visit(item) for item in node]
        if not isinstance(node, dict):
            return node
        out: dict[str, Any] = {}
        for key, value in node.items():
            if key in ("const", "enum", "required"):
                out[key] = literal(value)
            elif key == "items" and value in (True, {}):
                out[key] = _ANYTHING
            elif key in _MAPS and isinstance(value, dict):
                each = {name: _ANYTHING if one in (True, {}) else visit(one) for name, one in value.items()}
                out[key] = {mark(name): one for name, one in each.items()} if key == "properties" else each
            else:
                out[key] = visit(value)
        return out

    return visit(schema)
