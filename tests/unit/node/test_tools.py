from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlb.bus.messages.infer import Tool
from llmlb.node.engine import tools as toolkit
from llmlb.node.engine.tool_reader import ToolReader
from llmlb.node.engine.tools import (
    FUNCTIONARY,
    FUNCTIONARY_RECIPIENT,
    HARMONY,
    HERMES,
    LLAMA3,
    MISTRAL,
    ToolFormat,
    calls_schema,
    format_of,
)

WEATHER = Tool(
    name="get_weather",
    parameters=json.dumps(
        {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "zip": {}}}
    ),
)
TOOLS = (WEATHER, Tool(name="now"), Tool(name="run", parameters='{"properties": {"code": {"type": "string"}}}'))
JSON = format_of("{{ tools }}")[0]

Read = tuple[str, list[tuple[str, object]]]


def read(format: ToolFormat, pieces: Iterable[str], tools: tuple[Tool, ...] = TOOLS) -> Read:
    """Text and calls of an answer that comes in these pieces; arguments have to be JSON objects that can be sent."""
    reader = ToolReader(format, tools)
    text, calls = "", []
    for out, found in [*map(reader.feed, pieces), reader.finish()]:
        text += out
        calls += found
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls) == reader.count
    arguments = [json.loads(call.arguments, parse_constant=lambda name: pytest.fail(name)) for call in calls]
    assert all(isinstance(one, dict) and call.arguments.encode() for one, call in zip(arguments, calls, strict=True))
    return text, [(str(call.name), one) for call, one in zip(calls, arguments, strict=True)]


PARIS, ROME = ("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})
P, R = '{"name": "get_weather", "arguments": {"city": "Paris"}}', '{"name":"get_weather","arguments":{"city":"Rome"}}'
LP, LR = P.replace("arguments", "parameters"), R.replace("arguments", "parameters")
CODE = 'if x: {"a": "]}"} # </tool_call> >>> \\ <|python_tag|> </function>'
RUN = ("run", {"code": CODE})
CODED = json.dumps({"name": "run", "arguments": {"code": CODE}})
XML = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>"
BROKEN = '{"name": "get_weather", "arguments": {"city": "Paris"'

CASES: list[tuple[str, ToolFormat, str, Read]] = [
    ("a call", HERMES, f"<tool_call>\n{P}\n</tool_call>", ("", [PARIS])),
    ("text before", HERMES, f"Let me look.\n\n<tool_call>\n{P}\n</tool_call>", ("Let me look.", [PARIS])),
    ("whitespace before", HERMES, f" \n\n<tool_call>{P}</tool_call>\n", ("", [PARIS])),
    ("parallel", HERMES, f"<tool_call>\n{P}\n</tool_call>\n<tool_call>\n{R}\n</tool_call>", ("", [PARIS, ROME])),
    ("text after only", HERMES, f"\n\n<tool_call>{P}</tool_call>\n\nDone.", ("Done.", [PARIS])),
    ("text after", HERMES, f"<tool_call>{P}</tool_call>\n\nDone. ", ("Done. ", [PARIS])),
    ("text between", HERMES, f"A <tool_call>{P}</tool_call> B <tool_call>{R}</tool_call>", ("A B", [PARIS, ROME])),
    ("markers in texts", HERMES, f"<tool_call>{CODED}</tool_call>", ("", [RUN])),
    ("a list", HERMES, f"<tool_call>[{P}, {R}]</tool_call>", ("", [PARIS, ROME])),
    ("unknown", HERMES, '<tool_call>{"name": "x", "arguments": {}}</tool_call>', ("", [("x", {})])),
    ("no arguments", HERMES, '<tool_call>{"name": "now"}</tool_call>', ("", [("now", {})])),
    (
        "arguments as text",
        HERMES,
        '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", [("now", {"a": 1})]),
    ),
    (
        "line break",
        HERMES,
        '<tool_call>{"name":"run","arguments":{"code":"a\nb"}}</tool_call>',
        ("", [("run", {"code": "a\nb"})]),
    ),
    ("never closed", HERMES, f"<tool_call>\n{P}", ("", [PARIS])),
    ("cut off", HERMES, f"<tool_call>\n{BROKEN}", (f"<tool_call>\n{BROKEN}", [])),
    ("cut off marker", HERMES, "a <tool_ca", ("a <tool_ca", [])),
    ("one brace too many", HERMES, f"<tool_call>{P}}}</tool_call> x", (f"<tool_call>{P}}}</tool_call> x", [])),
    (
        "broken, then whole",
        HERMES,
        f"<tool_call>{BROKEN}\n<tool_call>{P}</tool_call>",
        (f"<tool_call>{BROKEN}", [PARIS]),
    ),
    (
        "broken in a text, then whole",
        HERMES,
        f'<tool_call>{{"name": "ab</tool_call>\n<tool_call>{P}</tool_call>',
        ('<tool_call>{"name": "ab</tool_call>', [PARIS]),
    ),
    ("the marker as a word", HERMES, "Write <tool_call> first, then", ("Write <tool_call> first, then", [])),
    ("empty", HERMES, "<tool_call></tool_call>", ("<tool_call></tool_call>", [])),
    ("a number", HERMES, "<tool_call>1</tool_call>", ("<tool_call>1</tool_call>", [])),
    (
        "arguments that are a list",
        HERMES,
        '<tool_call>{"name":"now","arguments":[1]}</tool_call>',
        ('<tool_call>{"name":"now","arguments":[1]}</tool_call>', []),
    ),
    (
        "arguments that are no JSON",
        HERMES,
        '<tool_call>{"name":"now","arguments":"x=1"}</tool_call>',
        ('<tool_call>{"name":"now","arguments":"x=1"}</tool_call>', []),
    ),
    (
        "not a number",
        HERMES,
        '<tool_call>{"name":"now","arguments":{"a":NaN}}</tool_call>',
        ('<tool_call>{"name":"now","arguments":{"a":NaN}}</tool_call>', []),
    ),
    (
        "too large",
        HERMES,
        '<tool_call>{"name":"now","arguments":{"a":1e999}}</tool_call>',
        ('<tool_call>{"name":"now","arguments":{"a":1e999}}</tool_call>', []),
    ),
    ("Qwen3-Coder", HERMES, f"<tool_call>\n{XML}\n</tool_call>", ("", [("get_weather", {"city": "Paris", "days": 3})])),
    (
        "a number that is a text",
        HERMES,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n90210\n</parameter>\n<parameter=zip>\n90210\n"
        "</parameter>\n</function>\n</tool_call>",
        ("", [("get_weather", {"city": "90210", "zip": 90210})]),
    ),
    (
        "code with quotes",
        HERMES,
        '<tool_call>\n<function=run>\n<parameter=code>\n  print("it\'s {")\n\nx\n</parameter>\n</function>\n'
        "</tool_call>",
        ("", [("run", {"code": '  print("it\'s {")\n\nx'})]),
    ),
    (
        "XML cut off",
        HERMES,
        "<tool_call>\n<function=run>\n<parameter=code>\nrm -r /tmp",
        ("<tool_call>\n<function=run>\n<parameter=code>\nrm -r /tmp", []),
    ),
    ("XML without parameters", HERMES, "<tool_call><function=now>\n</function></tool_call>", ("", [("now", {})])),
    (
        "XML with something else",
        HERMES,
        "<tool_call><function=now>soon</function></tool_call>",
        ("<tool_call><function=now>soon</function></tool_call>", []),
    ),
    ("Llama", LLAMA3, LP, ("", [PARIS])),
    ("Llama, tag", LLAMA3, f"<|python_tag|>{LP}", ("", [PARIS])),
    ("Llama, several", LLAMA3, f"{LP}; {LR}", ("", [PARIS, ROME])),
    ("Llama, several tags", LLAMA3, f"<|python_tag|>{LP}; <|python_tag|>{LR}", ("", [PARIS, ROME])),
    ("Llama, a list", LLAMA3, f"[{LP}, {LR}]", ("", [PARIS, ROME])),
    ("Llama, type", LLAMA3, f'{{"type": "function", {LP[1:]}', ("", [PARIS])),
    ("Llama, text after", LLAMA3, f"{LP} is the call. ", ("is the call. ", [PARIS])),
    ("Llama, semicolon after", LLAMA3, f"{LP}; and so on", ("; and so on", [PARIS])),
    (
        "Llama, second unknown",
        LLAMA3,
        f'{LP}; {{"name": "x", "parameters": {{}}}}',
        ('; {"name": "x", "parameters": {}}', [PARIS]),
    ),
    ("Llama, half unknown", LLAMA3, f'[{LP}, {{"name": "x"}}]', (f'[{LP}, {{"name": "x"}}]', [])),
    ("Llama, text first", LLAMA3, f"Sure: {LP}", (f"Sure: {LP}", [])),
    ("Llama, text and tag", LLAMA3, f"Sure: <|python_tag|>{LP}", ("Sure:", [PARIS])),
    ("Llama, python", LLAMA3, '<|python_tag|>get.call(q="x")', ('<|python_tag|>get.call(q="x")', [])),
    ("Llama, cut off", LLAMA3, LP[:-1], (LP[:-1], [])),
    ("an answer in JSON", LLAMA3, ' {"name": "Bob"} \n', (' {"name": "Bob"} \n', [])),
    ("an answer with a tool's name", LLAMA3, '{"name": "now"}', ('{"name": "now"}', [])),
    ("a footnote", LLAMA3, "[1] says", ("[1] says", [])),
    ("generic", JSON, P, ("", [PARIS])),
    (
        "generic, OpenAI's own",
        JSON,
        f'{{"tool_calls": [{{"id": "1", "type": "function", "function": {P}}}]}}',
        ("", [PARIS]),
    ),
    ("Mistral, list", MISTRAL, f"[TOOL_CALLS] [{P}, {R}]", ("", [PARIS, ROME])),
    ("Mistral, text", MISTRAL, f"Hm. [TOOL_CALLS][{P}] ok", ("Hm. ok", [PARIS])),
    ("Mistral, ids", MISTRAL, f'[TOOL_CALLS][{P[:-1]}, "id": "abcdefghi"}}]', ("", [PARIS])),
    ("Mistral, named", MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', ("", [PARIS])),
    (
        "Mistral, named, several",
        MISTRAL,
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Rome"}',
        ("", [PARIS, ROME]),
    ),
    (
        "Mistral, markers not shown",
        MISTRAL,
        '[TOOL_CALLS]get_weather{"city": "Paris"}get_weather{"city": "Rome"}',
        ("", [PARIS, ROME]),
    ),
    ("Mistral, cut off", MISTRAL, f"[TOOL_CALLS][{P}", (f"[TOOL_CALLS][{P}", [])),
    (
        "Mistral, second cut off",
        MISTRAL,
        '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[ARGS]{"a',
        ('[TOOL_CALLS]now[ARGS]{"a', [("now", {})]),
    ),
    ("Mistral, words", MISTRAL, "[TOOL_CALLS] are a thing", ("[TOOL_CALLS] are a thing", [])),
    ("Functionary 3.1", FUNCTIONARY, '<function=get_weather>{"city": "Paris"}</function>', ("", [PARIS])),
    (
        "Functionary 3.1, several",
        FUNCTIONARY,
        'Now: <function=get_weather>{"city": "Paris"}</function><function=get_weather>{"city": "Rome"}</function>',
        ("Now:", [PARIS, ROME]),
    ),
    (
        "Functionary 3.1, markers in texts",
        FUNCTIONARY,
        f"<function=run>{json.dumps({'code': CODE})}</function>",
        ("", [RUN]),
    ),
    ("Functionary 3.1, cut off", FUNCTIONARY, '<function=now>{"a', ('<function=now>{"a', [])),
    ("Functionary 3.1, broken", FUNCTIONARY, "<function=now>{a}</function>", ("<function=now>{a}</function>", [])),
    ("Functionary 3.2", FUNCTIONARY_RECIPIENT, 'get_weather\n{"city": "Paris"}', ("", [PARIS])),
    (
        "Functionary 3.2, text and several",
        FUNCTIONARY_RECIPIENT,
        'all\nLet me see.>>>get_weather\n{"city": "Paris"}\n>>>get_weather\n{"city": "Rome"}',
        ("Let me see.", [PARIS, ROME]),
    ),
    ("Functionary 3.2, text", FUNCTIONARY_RECIPIENT, "all\n>>> print(1)\n1", (">>> print(1)\n1", [])),
    ("Functionary 3.2, marked text", FUNCTIONARY_RECIPIENT, "all\na >>>b\n>>>c", ("a >>>b\n>>>c", [])),
    ("Functionary 3.2, markers in texts", FUNCTIONARY_RECIPIENT, f"run\n{json.dumps({'code': CODE})}", ("", [RUN])),
    ("Functionary 3.2, nobody", FUNCTIONARY_RECIPIENT, "Hello there", ("Hello there", [])),
    ("Functionary 3.2, one word", FUNCTIONARY_RECIPIENT, "Hello", ("Hello", [])),
    ("Functionary 3.2, code", FUNCTIONARY_RECIPIENT, "python\nprint(1)", ("python\nprint(1)", [])),
    ("harmony", HARMONY, 'Hm.<|call|>get_weather\n{"city": "Paris"}<|call|>now\n{}', ("Hm.", [PARIS, ("now", {})])),
]


@pytest.mark.parametrize(
    ("format", "answer", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_a_model_writes_becomes_calls_and_text(format: ToolFormat, answer: str, expected: Read) -> None:
    assert read(format, [answer]) == expected
    assert read(format, answer) == expected, "letter by letter"


PARTS = [
    *(P, R, LP, XML, BROKEN, "{", "}", "[", "]", '"', "\\", " ", "\n", ";", ",", "a", "now", "[ARGS]", "{}"),
    *("<tool_call>", "</tool_call>", "<function=now>", "</function>", ">>>", "all\n", "now\n", "<|call|>"),
    *("<|python_tag|>", "[TOOL_CALLS]", "<tool", "<|py"),
]


@given(st.data())
@settings(max_examples=80)
def test_pieces_do_not_change_what_is_read(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from([HERMES, LLAMA3, JSON, MISTRAL, FUNCTIONARY, FUNCTIONARY_RECIPIENT, HARMONY]))
    answer = "".join(data.draw(st.lists(st.sampled_from(PARTS), max_size=12)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    whole = read(format, [answer])
    assert read(format, pieces) == whole
    assert read(format, answer) == whole
    if not whole[1] and format is not FUNCTIONARY_RECIPIENT:
        assert whole[0] == answer, "nothing is lost"


def test_a_call_goes_out_as_soon_as_it_is_whole() -> None:
    for format, answer in ((HERMES, f"<tool_call>{P}</tool_call>"), (LLAMA3, LP), (MISTRAL, f"[TOOL_CALLS][{P}]")):
        reader = ToolReader(format, TOOLS)
        assert reader.feed(answer[:-1]) == ("", [])
        _, calls = reader.feed(answer[-1])
        assert [call.name for call in calls] == ["get_weather"]


def test_an_answer_in_json_that_is_no_call_streams() -> None:
    reader = ToolReader(LLAMA3, TOOLS)
    assert reader.feed('{"answer": [')[0] == '{"answer": ['
    assert reader.feed("1, ")[0] == "1,"


@pytest.mark.parametrize("format", [HERMES, LLAMA3, MISTRAL, FUNCTIONARY, FUNCTIONARY_RECIPIENT])
def test_json_of_any_depth_is_survived(format: ToolFormat) -> None:
    deep = '[{"name":' * 5000 + "1" + "}]" * 5000
    for mark in (*format.opens, ""):
        answer = f"{mark}{deep}{format.close}"
        assert read(format, [answer]) == (answer, [])


def test_half_a_surrogate_pair_in_arguments_can_be_sent() -> None:
    text, calls = read(HERMES, ['<tool_call>{"name": "now", "arguments": {"a": "\\ud83d"}}</tool_call>'])
    assert (text, calls) == ("", [("now", {"a": "\ud83d"})])


def test_a_long_call_takes_linear_time() -> None:
    code = "x = {'a': [1]}\n" * 4000
    answer = json.dumps({"name": "run", "parameters": {"code": code}})
    assert read(LLAMA3, [answer[at : at + 4] for at in range(0, len(answer), 4)]) == ("", [("run", {"code": code})])


def test_without_tools_a_recipient_of_functionary_is_still_no_text() -> None:
    assert read(FUNCTIONARY_RECIPIENT, "all\nHello", ()) == ("Hello", [])
    assert read(FUNCTIONARY_RECIPIENT, '{"a": 1}', ()) == ('{"a": 1}', [])


TEMPLATES = {
    "{{ tools }}<tool_call>": (HERMES, True),
    "{{ tools }}[TOOL_CALLS] <tool_call>": (MISTRAL, True),
    "{{ tools }}'>>>all\\n' + x": (FUNCTIONARY_RECIPIENT, True),
    "{{ tools }}<function=": (FUNCTIONARY, True),
    '{{ tools }}"parameters"': (LLAMA3, True),
    "{{ tools }}<|channel|>final<|message|>": (HARMONY, True),
    "{{ messages }}": (HERMES, False),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_template_tells_the_format(template: str) -> None:
    assert format_of(template) == TEMPLATES[template]


def test_references_in_parameters_lead_to_where_they_are_in_the_schema_of_calls() -> None:
    parameters = {"properties": {"a": {"$ref": "#/$defs/A"}, "b": {"$ref": "#"}}, "$defs": {"A": {"type": "null"}}}
    schema = calls_schema((Tool(name="x", parameters=json.dumps(parameters)), WEATHER), HERMES)
    inner = schema["anyOf"][0]["properties"]["arguments"]["properties"]
    assert inner == {"a": {"$ref": "#/$defs/tool0/$defs/A"}, "b": {"$ref": "#/$defs/tool0"}}
    assert schema["$defs"]["tool0"]["$defs"]["A"] == {"type": "null"}


def test_instructions_name_every_tool() -> None:
    text = toolkit.instructions(TOOLS)
    shown = [json.loads(line) for line in text.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()]
    assert [one["function"]["name"] for one in shown] == [tool.name for tool in TOOLS]
