"""What the text of tool calls says, in the ways in which models write them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from llmlb.bus.messages.infer import Tool


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# Line breaks within texts are let through, as models write them; NaN and Infinity are not.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)
BETWEEN = re.compile(r"[\s,;]*")
_XML_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>\s*")
_XML_END = re.compile(r"\s*</function>\s*")
_XML_PARAMETER = re.compile(
    r"\s*<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>\s*|(?=<parameter=)|(?=</function>))", re.DOTALL
)


def decode(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value at a place of a text, and where it ends. Raises ValueError."""
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def written(arguments: Any) -> str | None:
    """Arguments as JSON text; None when they are no object, or hold what JSON can't (1e999)."""
    try:
        if isinstance(arguments, str):
            arguments, end = decode(text := arguments.strip() or "{}")
            if end != len(text):
                return None
        if not isinstance(arguments, dict):
            return None
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return text if _encodable(text) else json.dumps(arguments)


def _encodable(text: str) -> bool:
    """False for half a surrogate pair, which JSON's escapes can write and UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


Calls = list[tuple[str, str]]
"""(name, arguments) of calls."""


class Parser:
    """What the text of calls says. Everything in it has to be calls: None otherwise."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.names = {tool.name for tool in tools}
        self._types: dict[tuple[str, str], Any] = {}
        for tool in tools:
            try:
                schema, _ = decode(tool.parameters.strip())
            except ValueError:  # too deep: nothing is known of its arguments
                continue
            properties = schema.get("properties") if isinstance(schema, dict) else None
            if isinstance(properties, dict):
                self._types |= {(tool.name, key): value for key, value in properties.items()}

    def body(self, text: str) -> Calls | None:
        """Calls within markers: JSON values one after the other, or XML functions."""
        calls: Calls = []
        at = 0
        while (at := BETWEEN.match(text, at).end()) < len(text):  # type: ignore[union-attr]
            found, at = self._xml(text, at) if text.startswith("<function=", at) else self._json(text, at)
            if found is None:
                return None
            calls += found
        return calls or None

    def _json(self, text: str, at: int) -> tuple[Calls | None, int]:
        try:
            value, at = decode(text, at)
        except ValueError:
            return None, at
        return self.value(value), at

    def _xml(self, text: str, at: int) -> tuple[Calls | None, int]:
        head = _XML_FUNCTION.match(text, at)
        if head is None:
            return None, at
        values: dict[str, Any] = {}
        at, closed = head.end(), True
        if text.startswith("{", at):
            closed = False  # whole without its end marker, too
            try:
                values, at = decode(text, at)
            except ValueError:
                return None, at
        else:
            while (parameter := _XML_PARAMETER.match(text, at)) is not None:
                values[parameter[1]] = self._typed(head[1], parameter[1], parameter[2])
                at = parameter.end()
        end = _XML_END.match(text, at)
        arguments = written(values)
        if arguments is None or (end is None and (closed or text[at:].strip())):
            return None, at
        return [(head[1], arguments)], len(text) if end is None else end.end()

    def _typed(self, name: str, key: str, text: str) -> Any:
        """The value of a parameter that is written as bare text: by its schema, else by its looks."""
        declared = self._types.get((name, key))
        if isinstance(declared, dict) and (declared.get("type") == "string" or text in _listed(declared.get("enum"))):
            return text
        plain = text.strip()
        if plain in ("True", "False", "None"):
            return {"True": True, "False": False, "None": None}[plain]
        try:
            value, end = decode(plain)
            return value if end == len(plain) else text
        except ValueError:
            return text

    def value(self, value: Any, *, bare: bool = False) -> Calls | None:
        """A JSON value that is a call, or several. ``bare``: without a marker; then it must name a tool."""
        if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
            value = value["tool_calls"]
        if isinstance(value, list):
            calls: Calls = []
            for item in value:
                if isinstance(item, list) or (found := self.value(item, bare=bare)) is None:
                    return None
                calls += found
            return calls or None
        if not isinstance(value, dict):
            return None
        inner = value.get("function")
        if isinstance(inner, dict):
            value = inner
        name = value.get("name", inner)
        if not isinstance(name, str) or not name or not _encodable(name):
            return None
        given = value.get("arguments", value.get("parameters"))
        if bare and (name not in self.names or given is None):
            return None
        arguments = written({} if given is None else given)
        return None if arguments is None else [(name, arguments)]
