"""An answer of a given form where tools may be called: it is calls, or of that form, and the reader tells which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llmlb.bus.messages.infer import InferRequest, ResponseFormat, Tool
from llmlb.node.engine.grammars import grammar_for
from llmlb.node.engine.llama_grammar import schema_grammar
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.prompts import RenderedPrompt
from llmlb.node.engine.tool_reader import ToolReader
from llmlb.node.engine.tools import FUNCTIONARY, HARMONY, HERMES, LLAMA3, MISTRAL, ToolFormat, enforced
from llmlb.node.store.bundled import bundled_path
from tests.unit.node.test_grammars import admits

NODE = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
    "required": ["label", "kids"],
}
TREE = {
    "type": "object",
    "properties": {"top": {"$ref": "#/$defs/Node"}},
    "required": ["top"],
    "$defs": {"Node": NODE},
}
PLACE = {
    "type": "object",
    "properties": {
        "arguments": {"type": "integer"},
        "city": {"type": "string", "pattern": "^[A-Z][a-z\\]]+$"},
        "top": {"$ref": "#/$defs/Node"},
    },
    "required": ["arguments", "city", "top"],
    "$defs": {"Node": {"enum": ['a "b" [c', "root"]}},
}
"""With the names of the tools' schemas, and another meaning."""
TOOLS = (Tool(name="tree", parameters=json.dumps(TREE)), Tool(name="now"))
FORMATS = [HERMES, LLAMA3, MISTRAL, *map(enforced, (FUNCTIONARY, HARMONY))]
RIGHT = {"arguments": 1, "city": "Oslo", "top": 'a "b" [c'}
CALL = {"top": {"label": "x", "kids": [{"label": "y", "kids": []}]}}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = Model(str(bundled_path()), "smollm2", gpu_layers=0, progress=lambda share: None)
    yield model
    model.close()


def grammar(format: ToolFormat, form: ResponseFormat, choice: Any = "auto", tools: tuple[Tool, ...] = TOOLS) -> str:
    request = InferRequest(
        request_id="r", model="m", kind="chat", tools=tools, tool_choice=choice, response_format=form
    )
    made = grammar_for(request, RenderedPrompt(("x",), None, tools, format), schema_grammar)
    assert made is not None
    return made


@pytest.mark.parametrize("format", FORMATS, ids=[format.name for format in FORMATS])
def test_it_is_a_call_or_of_the_form_and_nothing_else(model: Model, format: ToolFormat) -> None:
    made = grammar(format, ResponseFormat(type="json_schema", json_schema=json.dumps(PLACE)))
    call = f"{format.before}{json.dumps({'name': 'tree', format.arguments_key: CALL})}{format.after}"
    answer = json.dumps(RIGHT)
    for text, calls in ((call, 1), (answer, 0)):
        assert admits(model, made, text), text
        reader = ToolReader(format, TOOLS)
        told, found = reader.feed(text)
        rest, more = reader.finish()
        assert len([*found, *more]) == calls
        assert (told + rest).strip() == ("" if calls else text)
    for wrong in ("Sure.", json.dumps({**RIGHT, "top": CALL["top"]}), json.dumps({**RIGHT, "city": "oslo"}), "{}"):
        assert not admits(model, made, wrong), wrong
    assert not admits(model, made, call.replace('"label": "y"', '"label": 1'))


def test_any_object_beside_calls_is_any_object(model: Model) -> None:
    made = grammar(HERMES, ResponseFormat(type="json_object"))
    assert admits(model, made, '{"a": [1, null]}')
    assert admits(model, made, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not admits(model, made, "[1]")


def test_where_a_tool_must_be_called_the_form_says_nothing(model: Model) -> None:
    made = grammar(HERMES, ResponseFormat(type="json_object"), "required")
    assert not admits(model, made, "{}")


def test_where_no_tool_may_be_called_there_is_only_the_form(model: Model) -> None:
    made = grammar(HERMES, ResponseFormat(type="json_object"), "none", ())
    assert not admits(model, made, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
