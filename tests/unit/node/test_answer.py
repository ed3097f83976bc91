from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlb.bus.messages.infer import Tool
from llmlb.node.engine.answer import AnswerReader
from llmlb.node.engine.reasoning import FAMILIES, Markers
from llmlb.node.engine.tool_reader import ToolReader
from llmlb.node.engine.tools import HARMONY, HERMES, LLAMA3, ToolFormat

TOOLS = (Tool(name="now"),)
CALL = '<tool_call>\n{"name": "now", "arguments": {"a": "€"}}\n</tool_call>'
Read = tuple[str, str, list[tuple[str | None, str]], bool]


def read(
    pieces: list[bytes],
    stop: tuple[str, ...] = (),
    *,
    format: ToolFormat | None = None,
    opened: Markers | None = None,
    chat: bool = True,
) -> tuple[Read, str]:
    """(thinking, text, calls, stopped) of an answer in these pieces, and the text that was sent before its end."""
    tools = None if format is None else ToolReader(format, TOOLS)
    reader = AnswerReader(stop=stop, chat=chat, opened=opened, tools=tools)
    sent = [reader.feed(piece) for piece in pieces]
    before = "".join(piece.text for piece in sent)
    sent.append(reader.finish())
    calls = [(call.name, call.arguments) for piece in sent for call in piece.tool_calls]
    assert reader.called == bool(calls)
    thought, text = "".join(piece.reasoning for piece in sent), "".join(piece.text for piece in sent)
    return (thought, text, calls, reader.stopped), before


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(min(one, len(data)) for one in cuts)
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


texts = st.lists(st.sampled_from(["a", "b", "€", "😀", "\n", " ", "ab", "<think>", "</think>", "END"]), max_size=10)
stops = st.lists(st.sampled_from(["a", "ab", "b€", "€", "END", "ENDE", "\n\n", "</think>"]), max_size=3).map(tuple)
cuts = st.lists(st.integers(0, 60), max_size=8)


@given(texts.map("".join), cuts, stops)
@settings(max_examples=80)
def test_a_completion_is_the_text_before_the_first_stop_text_whatever_the_pieces(
    text: str, cuts: list[int], stop: tuple[str, ...]
) -> None:
    begins = [text.find(one) for one in stop if one in text]
    expected = text[: min(begins)] if begins else text
    for pieces in ([text.encode()], cut(text.encode(), cuts), one_by_one(text.encode())):
        (_, out, _, stopped), sent = read(pieces, stop, chat=False)
        assert (out, stopped) == (expected, bool(begins))
        assert out.startswith(sent)
        assert not any(one in sent for one in stop)


@given(
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", " ", "\n", "€", "a", "END", CALL, "<tool_call>", "</tool_call>", '{"name": "now"}']
        ),
        max_size=8,
    ).map("".join),
    cuts,
    stops,
    st.booleans(),
)
@settings(max_examples=80)
def test_pieces_never_change_an_answer(answer: str, cuts: list[int], stop: tuple[str, ...], opened: bool) -> None:
    def of(pieces: list[bytes]) -> Read:
        return read(pieces, stop, format=HERMES, opened=FAMILIES[0] if opened else None)[0]

    whole = of([answer.encode()])
    assert of(cut(answer.encode(), cuts)) == whole
    assert of(one_by_one(answer.encode())) == whole
    assert not any(one in whole[1] for one in stop if not whole[2]), "no stop text was sent"


@given(st.binary(max_size=30), cuts, stops)
def test_bytes_that_are_no_utf_8_never_break_it(data: bytes, cuts: list[int], stop: tuple[str, ...]) -> None:
    assert read(cut(data, cuts), stop, format=HERMES)[0] == read([data], stop, format=HERMES)[0]


def test_thinking_text_and_calls_come_apart() -> None:
    answer = f"<think>\nWhat time? \n</think>\n\nI look.\n{CALL}"
    read_, _ = read(one_by_one(answer.encode()), format=HERMES)
    assert read_ == ("What time?", "I look.", [("now", '{"a": "€"}')], False)


def test_a_stop_text_ends_the_answer_and_not_the_thinking() -> None:
    (thought, text, _, stopped), _ = read([b"<think>a END b</think>c END d"], ("END",))
    assert (thought, text, stopped) == ("a END b", "c ", True)
    (thought, text, _, stopped), _ = read([b"<think>never END"], ("END",))
    assert (thought, text, stopped) == ("never END", "", False)


def test_a_completion_knows_no_thinking() -> None:
    assert read([b"<think>a</think>b"], chat=False)[0] == ("", "<think>a</think>b", [], False)


def test_a_stop_text_within_a_call_leaves_its_beginning_as_text() -> None:
    (_, text, calls, stopped), _ = read([CALL.encode()], ("arguments",), format=HERMES)
    assert (text, calls, stopped) == ('<tool_call>\n{"name": "now", "', [], True)


def test_a_call_of_gpt_oss_is_read_out_of_its_channels() -> None:
    answer = (
        "<|channel|>analysis<|message|>Time?<|end|><|start|>assistant<|channel|>commentary to=functions.now "
        '<|constrain|>json<|message|>{"a": 1}'
    )
    for pieces in ([answer.encode()], one_by_one(answer.encode())):
        assert read(pieces, format=HARMONY)[0] == ("Time?", "", [("now", '{"a": 1}')], False)


def test_after_a_stop_text_nothing_more_is_read() -> None:
    reader = AnswerReader(stop=("END",), tools=ToolReader(HERMES, TOOLS))
    assert reader.feed(b"a END" + CALL.encode()).text == "a"
    assert reader.stopped
    assert not reader.feed(b"b").text
    rest = reader.finish()
    assert (rest.text, rest.reasoning, rest.tool_calls) == (" ", "", ())


@pytest.mark.parametrize("half", ["€".encode()[:2], "😀".encode()[:3]])
def test_half_a_code_point_at_the_end_is_a_replacement_character(half: bytes) -> None:
    reader = AnswerReader()
    assert reader.feed(b"a" + half).text == "a"
    assert reader.finish().text == "\ufffd"


def test_an_answer_in_json_is_text_with_tools_at_hand() -> None:
    answer = json.dumps({"answer": [1, {"name": "now"}]})
    assert read(one_by_one(answer.encode()), format=LLAMA3)[0][1:3] == (answer, [])
