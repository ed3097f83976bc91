from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest, ResponseFormat, Sampling, Tool
from llmlb.node.engine.grammars import grammar_for, schema_gbnf
from llmlb.node.engine.llama_grammar import GrammarMask, schema_grammar
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.prompts import RenderedPrompt
from llmlb.node.engine.sampling import Sampler
from llmlb.node.engine.tool_reader import ToolReader
from llmlb.node.engine.tools import (
    FUNCTIONARY,
    FUNCTIONARY_RECIPIENT,
    HARMONY,
    HERMES,
    LLAMA3,
    MISTRAL,
    ToolFormat,
    enforced,
    format_of,
)
from llmlb.node.store.bundled import bundled_path

NODE = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
    "required": ["label", "kids"],
}
OTHER_NODE = {"type": "integer"}


def tree(node: dict[str, Any]) -> str:
    return json.dumps(
        {
            "type": "object",
            "properties": {"top": {"$ref": "#/$defs/Node"}},
            "required": ["top"],
            "$defs": {"Node": node},
        }
    )


WEATHER = Tool(
    name="get_weather",
    parameters='{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
)
TOOLS = (
    WEATHER,
    Tool(name='say "hi"'),
    Tool(name="tree", parameters=tree(NODE)),
    Tool(name="n", parameters=tree(OTHER_NODE)),
)
FORMATS = [
    HERMES,
    LLAMA3,
    MISTRAL,
    format_of("{{ tools }}")[0],
    *map(enforced, (FUNCTIONARY, FUNCTIONARY_RECIPIENT, HARMONY)),
]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_weather", {"city": 'a "{" \\ € </tool_call>\n'}),
    ('say "hi"', {"anything": [1, None]}),
    ("tree", {"top": {"label": "x", "kids": [{"label": "y", "kids": []}]}}),
    ("n", {"top": 3}),
]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    path = bundled_path()
    assert path is not None
    model = Model(str(path), "smollm2", gpu_layers=0, progress=lambda share: None)
    yield model
    model.close()


def admits(model: Model, grammar: str, text: str) -> bool:
    """Whether a text is a whole answer by the grammar, token by token."""
    mask = GrammarMask(model, grammar)
    try:
        for token in model.tokenize(text, add_special=False):
            if not mask.allows(token):
                return False
            mask.accept(token)
        return mask.allows(ending(model))
    finally:
        mask.close()


def ending(model: Model) -> int:
    return next(token for token in range(model.vocabulary) if model.ends(token))


def forced(format: ToolFormat, tools: tuple[Tool, ...] = TOOLS, *, parallel: bool = True) -> str:
    request = InferRequest(
        request_id="r", model="m", kind="chat", tools=tools, tool_choice="required", parallel_tool_calls=parallel
    )
    grammar = grammar_for(request, RenderedPrompt(("x",), None, tools, format), schema_grammar)
    assert grammar is not None
    return grammar


def written(format: ToolFormat, *calls: tuple[str, dict[str, Any]]) -> str:
    """Calls as a model under the grammar writes them."""
    texts = [json.dumps({"name": name, format.arguments_key: one}, ensure_ascii=False) for name, one in calls]
    if format.before.endswith("["):
        return f"{format.before}{','.join(texts)}{format.after}"
    return "\n".join(f"{format.before}{text}{format.after}" for text in texts)


def read(format: ToolFormat, tools: tuple[Tool, ...], answer: str) -> tuple[str, list[tuple[str | None, Any]]]:
    reader = ToolReader(format, tools)
    text, calls = reader.feed(answer)
    rest, more = reader.finish()
    return text + rest, [(call.name, json.loads(call.arguments)) for call in [*calls, *more]]


@pytest.mark.parametrize("format", FORMATS, ids=[format.name for format in FORMATS])
def test_a_forced_call_of_any_tool_is_admitted_and_read(model: Model, format: ToolFormat) -> None:
    grammar = forced(format)
    for call in CALLS:
        answer = written(format, call)
        assert admits(model, grammar, answer), answer
        assert read(format, TOOLS, answer) == ("", [call])
    assert not admits(model, grammar, "Sure.")
    assert not admits(model, grammar, written(format, ("unknown", {})))
    assert not admits(model, grammar, written(format, ("get_weather", {"city": 1})))
    assert not admits(model, grammar, written(format, ("n", CALLS[2][1]))), "definitions of two tools with one name"


@pytest.mark.parametrize("format", [HERMES, MISTRAL])
def test_several_calls_are_admitted_when_the_request_takes_them(model: Model, format: ToolFormat) -> None:
    answer = written(format, CALLS[0], CALLS[3])
    assert admits(model, forced(format), answer)
    assert read(format, TOOLS, answer) == ("", [CALLS[0], CALLS[3]])
    assert not admits(model, forced(format, parallel=False), answer)
    assert admits(model, forced(format, parallel=False), written(format, CALLS[0]))


@pytest.mark.parametrize("format", FORMATS[:4], ids=[format.name for format in FORMATS[:4]])
def test_whatever_is_sampled_under_the_grammar_is_a_call(model: Model, format: ToolFormat) -> None:
    tools = (WEATHER, TOOLS[3])
    pieces = [model.piece(token) for token in range(model.vocabulary)]
    leaning = np.array([14 if piece[:1] in (b'"', b"}", b"]") else 0 for piece in pieces], dtype=np.float32)
    for seed in range(2):
        mask = GrammarMask(model, forced(format, tools, parallel=False))
        sampler = Sampler(Sampling(seed=seed, temperature=1.0), grammar=mask)
        random = np.random.default_rng(seed)
        data = b""
        for _ in range(300):
            token = sampler.sample(leaning + random.normal(size=model.vocabulary).astype(np.float32) * 3)
            if model.ends(token):
                break
            sampler.accept(token)
            data += model.piece(token)
        else:
            pytest.fail("it never ends")
        mask.close()
        text, calls = read(format, tools, data.decode(errors="replace"))
        assert text == ""
        assert len(calls) == 1


def test_an_object_is_any_json_object(model: Model) -> None:
    request = InferRequest(request_id="r", model="m", kind="chat", response_format=ResponseFormat(type="json_object"))
    grammar = grammar_for(request, RenderedPrompt(("x",), None, (), HERMES), schema_grammar)
    assert grammar is not None
    assert admits(model, grammar, '{"a": {"b": [1, -2.5e3, "x\\n€😀", null, true]}}')
    assert admits(model, grammar, "{}")
    for wrong in (
        "[]",
        "x",
        '{"a": 1',
        '{"a": 1} x',
        '{"a": "line\nbreak"}',
        '{"a": "tab\t"}',
        '{"a": "\\x"}',
        "{'a': 1}",
    ):
        assert not admits(model, grammar, wrong), wrong


SCHEMAS: list[tuple[Any, list[str], list[str]]] = [
    ({"const": 'say "hi" \\ \n é 😀'}, [json.dumps('say "hi" \\ \n é 😀', ensure_ascii=False)], ['"hi"']),
    ({"enum": ["a\\b", 1, {"x": '"'}]}, ['"a\\\\b"', "1", '{"x": "\\""}'], ['"a\\b"', '"a"']),
    (
        {"type": "object", "properties": {'q"': {"type": "null"}, "é": {"type": "integer"}}, "required": ['q"', "é"]},
        ['{"q\\"": null, "é": 1}'],
        ['{"q\\"": null}', '{"é": 1}'],
    ),
    (
        {"type": "object", "properties": {"root": {"type": "string"}, "call": {}}, "required": ["root", "call"]},
        ['{"root": "a", "call": 1}', '{"root": "a", "call": ["x"]}'],
        ['{"root": "a"}', '{"root": "a\nb", "call": 1}'],
    ),
    ({"type": "string", "pattern": "^a.b$"}, ['"axb"'], ['"a"b"', '"a\\b"', '"ab"']),
    (
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
        ['{"next": {"next": null}}'],
        ['{"next": 1}'],
    ),
    (
        {
            "$ref": "#/$defs/root",
            "$defs": {
                "root": {"type": "object", "properties": {"string": {"$ref": "#/$defs/a~1b"}}, "required": ["string"]},
                "a/b": {"type": "array", "items": True},
            },
        },
        ['{"string": [1, "x"]}'],
        ['{"string": "x"}'],
    ),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        ["[1]", "[1, 2]"],
        ["[]", "[1, 2, 3]"],
    ),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), SCHEMAS)
def test_a_schema_admits_what_it_says_and_nothing_else(
    model: Model, schema: Any, right: list[str], wrong: list[str]
) -> None:
    request = InferRequest(
        request_id="r",
        model="m",
        kind="chat",
        response_format=ResponseFormat(type="json_schema", json_schema=json.dumps(schema)),
    )
    grammar = grammar_for(request, RenderedPrompt(("x",), None, (), HERMES), schema_grammar)
    assert grammar is not None
    assert [text for text in right if not admits(model, grammar, text)] == []
    assert [text for text in wrong if admits(model, grammar, text)] == []
    for text in right:
        json.loads(text)


@pytest.mark.parametrize(
    "schema", [[], "x", 1, {"$ref": "#/nope"}, {"$ref": "https://a.b/c"}, {"enum": []}, {"type": "x"}]
)
def test_what_is_no_schema_is_the_requests_fault(model: Model, schema: Any) -> None:
    with pytest.raises(InvalidRequest):
        GrammarMask(model, schema_gbnf(schema, schema_grammar))


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"a":' * 20_000 + "1" + "}" * 20_000], ids=["broken", "open", "deep"]
)
def test_what_is_no_json_is_the_requests_fault(text: str) -> None:
    request = InferRequest(
        request_id="r", model="m", kind="chat", response_format=ResponseFormat(type="json_schema", json_schema=text)
    )
    with pytest.raises(InvalidRequest):
        grammar_for(request, RenderedPrompt(("x",), None, (), HERMES), schema_grammar)


BOUNDED: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "string", "maxLength": 20000}, ["", "a" * 19999, "a" * 20000], ["a" * 20001]),
    ({"type": "string", "minLength": 2500, "maxLength": 2501}, ["a" * 2500, "a" * 2501], ["a" * 2499, "a" * 2502]),
    ({"type": "string", "minLength": 3, "maxLength": 3}, ["aaa"], ["aa", "aaaa"]),
    ({"type": "string", "minLength": 3000}, ["a" * 3000, "a" * 4000], ["a" * 2999]),
    ({"type": "string", "maxLength": 2147483647}, ["", "a" * 3000], []),
    (
        {"type": "string", "pattern": "^(ab){2,3}c{2}[0-9]{0,4000}$"},
        ["ababcc", "abababcc" + "1" * 4000],
        ["abcc", "ababc"],
    ),
]
LISTS: list[tuple[dict[str, Any], list[int], list[int]]] = [
    ({"maxItems": 20000}, [0, 1, 2, 141 * 141, 20000], [20001]),
    ({"maxItems": 1}, [0, 1], [2]),
    ({"maxItems": 0}, [0], [1]),
    ({"minItems": 1}, [1, 50], [0]),
    ({"minItems": 2100, "maxItems": 4300}, [2100, 4300], [2099, 4301]),
    ({"minItems": 2, "maxItems": 2}, [2], [1, 3]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), BOUNDED)
def test_a_text_is_as_long_as_its_schema_says(
    model: Model, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    grammar = schema_gbnf(schema, schema_grammar)
    for text in good:
        assert admits(model, grammar, json.dumps(text)), len(text)
    for text in bad:
        assert not admits(model, grammar, json.dumps(text)), len(text)


@pytest.mark.parametrize(("limits", "good", "bad"), LISTS)
def test_a_list_is_as_long_as_its_schema_says(
    model: Model, limits: dict[str, int], good: list[int], bad: list[int]
) -> None:
    grammar = schema_gbnf({"type": "array", "items": {"type": "integer"}, **limits}, schema_grammar)
    for count in good:
        assert admits(model, grammar, "[" + "1," * (count - 1) + "1" * bool(count) + "]"), count
    for count in bad:
        assert not admits(model, grammar, "[" + "1," * (count - 1) + "1" * bool(count) + "]"), count


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a?){5000}$"},
        {"type": "string", "pattern": "^((a?){10}){10}$"},
        {"type": "string", "pattern": "^" + "a?" * 500 + "$"},
        {"type": "string", "pattern": "^" + "(" * 900 + "a" + ")" * 900 + "$"},
        {"type": "string", "pattern": "^" + "(" * 50000 + "a" + ")" * 50000 + "$"},
        {"type": "string", "pattern": "^a{999999999}$"},
        {"type": "string", "minLength": 10**9},
        {"type": "string", "minLength": 5, "maxLength": 4},
        {"type": "string", "minLength": 1.5},
        {"type": "array", "items": {"type": "integer"}, "minItems": "many"},
        {"enum": [f"value {number}" for number in range(20000)]},
        {"enum": []},
        {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": 2000 - n} for n in range(100)}},
    ],
    ids=lambda schema: str(schema)[:50],
)
def test_what_would_take_the_worker_down_or_stop_it_is_refused(
    model: Model, schema: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidRequest):
        GrammarMask(model, schema_gbnf(schema, schema_grammar)).close()
    assert capfd.readouterr().err == ""


def test_large_plain_schemas_are_taken(model: Model) -> None:
    properties = {f"p{n}": {"type": "string", "maxLength": 2000, "description": "x"} for n in range(100)}
    for schema in (
        {"type": "object", "properties": properties},
        {"type": "object", "properties": properties, "required": list(properties)},
        {"enum": [f"value {number}" for number in range(500)]},
        {"type": "array", "items": {"type": "object", "properties": properties}, "maxItems": 5000},
    ):
        GrammarMask(model, schema_gbnf(schema, schema_grammar)).close()


def test_a_refused_grammar_is_not_printed(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidRequest, match="not accepted"):
        GrammarMask(model, 'root ::= "secret" (')
    assert capfd.readouterr().err == ""


def test_an_answer_that_no_token_goes_on_with_is_trouble_and_no_crash(model: Model) -> None:
    mask = GrammarMask(model, 'root ::= "a" [^\\x00-\\U0010FFFF]')
    (token,) = model.tokenize("a", add_special=False)
    logits = np.zeros(model.vocabulary, dtype=np.float32)
    assert mask.allows(token)
    mask.accept(token)
    assert mask.trouble is None
    mask.mask(logits)
    assert not np.isfinite(logits).any()
    mask.accept(int(logits.argmax()))
    assert mask.trouble is not None
    mask.accept(token)  # and whatever comes after it
    mask.close()


def test_a_continuation_that_does_not_follow_the_grammar_is_trouble_and_no_crash(model: Model) -> None:
    mask = GrammarMask(model, schema_gbnf({"type": "integer"}, schema_grammar))
    mask.accept(model.tokenize("hello", add_special=False)[0])
    assert mask.trouble is not None
    mask.close()


def test_a_free_answer_has_no_grammar() -> None:
    request = InferRequest(request_id="r", model="m", kind="chat", tools=TOOLS)
    prompt = RenderedPrompt(("x",), None, TOOLS, HERMES)
    assert grammar_for(request, prompt, schema_grammar) is None
    assert grammar_for(request.model_copy(update={"tool_choice": "required"}), replace(prompt, tools=()), str) is None
