"""The messages of a long body go on the bus, and into the record, as they came: nobody may see a difference."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import orjson
import pydantic_core
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus import codec
from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.base import changed
from llmlb.bus.messages.infer import InferRequest, WrittenMessages
from llmlb.bus.messages.requests import RequestRecord
from llmlb.router import redaction
from llmlb.router.call import Call
from llmlb.router.gateway import long_messages
from llmlb.router.gateway import plain_chat as module
from llmlb.router.gateway.openai_schema import MAX_MESSAGES, ChatRequest, parse
from llmlb.router.gateway.plain_chat import PLAIN_MAX, SHORT_MAX
from llmlb.router.journey import Journey
from llmlb.router.record import encode
from llmlb.router.redaction import BODY_MAX, CUT, kept_body, kept_json

LONG = 'größe " \\ \n 😀 ' * (SHORT_MAX // 8)
FILL = "a" * SHORT_MAX
MODEL = '"model": "m"'


def body(messages: str, before: str = MODEL + ", ", after: str = "") -> bytes:
    return f'{{{before}"messages": {messages}{after}}}'.encode()


def one(content: str, role: str = "user") -> str:
    return json.dumps([{"role": role, "content": content}])


def raw(content: str) -> str:
    """As :func:`one`, of what is JSON already, or is to be none."""
    return '[{"role": "user", "content": "' + content + '"}]'


def by_schema(data: bytes) -> tuple[InferRequest, bool]:
    asked = parse(ChatRequest, data)
    request, images = asked.request("r", 7)
    assert not images
    return request, bool(asked.stream)


def same(data: bytes) -> None:
    """What goes on the bus is read by a node as what the schema would have put there."""
    plain = plain_chat(data, "r", 7)
    assert plain is not None
    assert isinstance(plain[0].messages, WrittenMessages)
    request, streamed = by_schema(data)
    at = {"sent_at": request.sent_at}
    assert plain[0].model_copy(update=at) == request
    assert plain[1] == streamed
    for ours in (plain[0], changed(plain[0], model="n", attempt=1, continuation=(1, 2))):
        theirs = changed(request, **{name: getattr(ours, name) for name in ("model", "attempt", "continuation")})
        read = codec.decode_as(InferRequest, b"".join(codec.encode_request(ours)))
        assert read.model_copy(update=at) == codec.decode_as(InferRequest, codec.encode_any(theirs))


def same_or_left(data: bytes) -> bool:
    if plain_chat(data, "r", 7) is None:
        return False
    same(data)
    return True


compared = False
"""Whether the texts are wanted at once."""


def plain_chat(data: bytes, request_id: str, seed: int) -> tuple[InferRequest, bool] | None:
    return module.plain_chat(data, request_id, seed, lambda _: compared)


@pytest.fixture(autouse=True, params=["simdjson", "simdjson, texts not wanted", "pydantic"])
def read_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to read them."""
    by: str = request.param
    monkeypatch.setitem(globals(), "compared", by == "simdjson")
    if by == "pydantic":
        monkeypatch.setattr(long_messages, "_simdjson", None)
    elif long_messages._simdjson is None:
        pytest.skip("there is no wheel of simdjson for this platform")
    return by


@pytest.fixture
def short_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies of any length are read as long ones are."""
    monkeypatch.setattr(module, "SHORT_MAX", 0)


@pytest.mark.parametrize(
    "data",
    [
        body(one(LONG)),
        body(one(LONG), "", ", " + MODEL),
        body(one(LONG), after=', "max_tokens": 5, "stream": true, "temperature": 0.70, "seed": -1, "top_p": 1'),
        body(one(LONG), MODEL + ', "stream": null,\t\r\n '),
        body(json.dumps([{"content": LONG, "role": "system"}, {"role": "user", "content": "hi"}], indent=2)),
        body(json.dumps([{"role": "user", "content": LONG}] * 3, ensure_ascii=False)),
        body(one('"messages": [' + LONG + ']}]}"messages": []')),
        body(one(LONG), '"model": "[x]", '),
        body('[{"content": "a", "role": "user", "content": "' + FILL + '", "role": "tool"}]'),
        body(one(LONG), MODEL + ', "seed": [1], "seed": 2, '),
        body(one(LONG), '"mess\\u0061ges": [{"role": "user", "content": "other"}], ' + MODEL + ", "),
        body(one(LONG), '"mess\\u0061ges": 5, "model": "n", ' + MODEL + ", "),
        body(one(LONG), '"messages": [], ' + MODEL + ", "),
        body(one(LONG), MODEL + ', "messages": 5, '),
        b" \n" + body(one(LONG)) + b"\r\n ",
    ],
)
def test_a_long_body_goes_on_as_it_came(data: bytes) -> None:
    same(data)
    plain = plain_chat(data, "r", 7)
    assert plain is not None
    assert isinstance(plain[0].messages, WrittenMessages)
    assert bytes(plain[0].messages.json) in data
    assert plain[0].messages.json in codec.encode_request(plain[0])


@pytest.mark.parametrize(
    "data",
    [
        body('[{"role": "user", "content": [{"type": "txt", "text": "' + FILL + '"}]}]'),
        body(raw(FILL + '", "name": "me')),
        body(one(LONG, "nobody")),
        body(one(LONG), after=', "messages": []'),
        *[
            ('{"model": "m", "messages": [], "seed": {"messages": ' + one(FILL + more) + '}, "seed": 1}').encode()
            for more in ("", "], 5", "]" * 40)
        ],
        body(one(LONG), '"messages": [{"a": {"messages": [{"role": "user", "content": "b"}]}}], ' + MODEL + ", "),
        body('[{"role": "user", "content": "' + FILL + '", "content": 5}]'),
        body('[{"role": "user", "content": "' + FILL + '"}, {"role": "user", "content": 5}]'),
        body('[{"content": "' + FILL + '", "rule": "user"}]'),
        body('[{"content": "' + FILL + '"}]'),
        body('[{"content": "' + FILL + '"}, 5]'),
        body('[{"content": "' + FILL + '", "role": {}}]'),
        body('[{"content": "' + FILL + '", "role": null}]'),
        body(one(LONG), after=', "messages": null'),
        body(one(LONG), after=', "mess\\u0061ges": 1'),
        body(one(LONG), after=', "user": "me"'),
        body(one(LONG), after=', "seed": [1], "seed": 1'),
        body(one(LONG), '"a\\"messages":[1], ' + MODEL + ", "),
        body(one(LONG), '"model": "' + "m" * 300 + '", '),
        body(one(LONG), " " * 600 + MODEL + ", "),
        body(one(LONG), after=" " * 600 + ', "seed": 1'),
        body(one("a" * PLAIN_MAX)),
        body(json.dumps([{"role": "user", "content": ""}] * (MAX_MESSAGES + 1), separators=(",", ":"))),
    ],
)
def test_what_is_not_as_most_are_is_left_to_the_schema(data: bytes) -> None:
    assert plain_chat(data, "r", 7) is None


@pytest.mark.parametrize(
    "text", ["]", "] , it", "]]]\t,", "{", "{" * 70, "]" * 40, "[]]" * 20 + ",", "] \n ,", "]x,", '\\"], \\"seed']
)
def test_brackets_and_commas_in_a_text_are_text(text: str) -> None:
    same(body(raw(FILL + text.replace("\t", "\\t").replace("\n", "\\n") + "b")))


@pytest.mark.parametrize(
    "more",
    [
        '], "seed": [1',
        '] , "messages": [{"role": "user", "content": "b"}',
        '],"stop":["]"',
        "], [",
        "]], [[",
        "], 5, [",
        '], "seed": [1], "stop": ["x"',
    ],
)
def test_a_list_that_ends_before_the_last_bracket_is_not_taken_for_all(more: str) -> None:
    data = body(one(FILL)[:-1] + more + "]", after=', "seed": 1')
    assert plain_chat(data, "r", 7) is None


@pytest.mark.parametrize(("opened", "closed"), ["[]", ('{"a":', "}")])
@pytest.mark.parametrize("deep", range(194, 203))
def test_what_a_name_that_comes_twice_hides_is_not_too_deep_for_any_reader(deep: int, opened: str, closed: str) -> None:
    hidden = '[{"role": "user", "content": "' + FILL + '"}, {"role": "user", "content": '
    data = body(hidden + opened * deep + "1" + closed * deep + ', "content": "x"}]')
    if (plain := plain_chat(data, "r", 7)) is None:
        assert deep > 195
        return
    same(data)
    assert codec.decode_as(RequestRecord, b"".join(encode(Journey(plain[0], Call(body=data), "g").record())))


@pytest.mark.parametrize(
    "data",
    [
        body(one(LONG))[:-1],
        body(one(LONG)) + b"]",
        body(one(LONG)) + b"}",
        body(one(LONG)[:-1] + "}"),
        body(one(LONG) + one(LONG)),
        body(one(LONG) + "5"),
        body(one(LONG)).replace(b"\\u", b"\\x", 1),
        body(raw(FILL + "\x01")),
        body(raw(FILL + "\\ud800")),
        body(raw(FILL + "?")).replace(b"?", b"\xff"),
        body(raw(FILL)[:-1] + ",]"),
        body(one(LONG)).replace(b'"messages":', b'"messages":\x0b'),
        body(one(LONG)).replace(b'"messages":', b'"messages"'),
    ],
)
def test_what_is_no_json_is_refused_as_the_schema_refuses_it(data: bytes) -> None:
    assert plain_chat(data, "r", 7) is None
    with pytest.raises(InvalidRequest):
        by_schema(data)


PIECES = (
    *('"messages"', '"model"', '"m"', '"seed"', '"role"', '"user"', '"content"', '"text"', '"stop"', '"'),
    *(":", ",", "{", "}", "[", "]", "[]", "{}", "5", "null", " ", "\\", '\\"', "\\u0022", "\x01", "e5", ".5"),
    *('[{"role":"user","content":"', '"}]', '"messages":[{"role":"user","content":"x"}]', '{"model":"m",'),
    *('"messages":[]', '"model":"m"', "],[", "]],[[", '"a\\"messages":[', '"mess\\u0061ges":'),
)


@pytest.mark.usefixtures("short_too")
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_whatever_is_put_together_is_read_as_the_schema_reads_it(text: str) -> None:
    same_or_left(text.encode())


@pytest.mark.usefixtures("short_too")
@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.integers(0, 60), st.integers(0, 60))
def test_a_good_body_with_something_put_into_it_is_read_as_the_schema_reads_it(text: str, at: int, end: int) -> None:
    good = body(one("x"), after=', "seed":1').decode()
    same_or_left((good[:at] + text + good[max(at, end) :]).encode())


texts = st.text() | st.sampled_from(PIECES) | st.lists(st.sampled_from(PIECES), max_size=4).map("".join)


@pytest.mark.usefixtures("short_too")
@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), texts), min_size=1, max_size=4),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.permutations(["model", "messages", "seed", "stream"]),
)
def test_any_texts_go_on_as_they_came(turns: list[Any], indent: int | None, ascii: bool, order: list[str]) -> None:
    fields: dict[str, Any] = {"model": "m", "seed": 1, "stream": True}
    fields["messages"] = [{"role": role, "content": text} for role, text in turns]
    same(json.dumps({name: fields[name] for name in order}, indent=indent, ensure_ascii=ascii).encode())


def test_written_messages_are_messages_to_everybody_else() -> None:
    plain = plain_chat(body(one(LONG)), "r", 7)
    assert plain is not None
    request = plain[0]
    assert request == by_schema(body(one(LONG)))[0].model_copy(update={"sent_at": request.sent_at})
    assert codec.decode_as(InferRequest, codec.encode(request)) == request
    again = InferRequest.model_validate(request.model_dump())
    assert (again, type(again.messages)) == (request, tuple)


def test_texts_are_read_by_what_reads_them_fastest(read_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def noted(data: bytes, **how: Any) -> Any:
        read.append(data)
        return pydantic_core.from_json(data, **how)

    monkeypatch.setattr(long_messages, "from_json", noted)
    texts, twice = body(one(LONG)), body('[{"role": "user", "content": "b", "content": "' + FILL + '"}]')
    parts = body('[{"role": "user", "content": [{"type": "text", "text": "' + FILL + '"}]}]')
    for data in (texts, twice, parts):
        plain = plain_chat(data, "r", 7)
        assert plain is not None
        waits = isinstance(plain[0].messages, WrittenMessages) and plain[0].messages._read is None
        assert waits == (data is texts and read_by == "simdjson, texts not wanted")
    assert read == ([texts, twice, parts] if read_by == "pydantic" else [twice, parts])
    too_long = body(one("a" * long_messages._PARSER_MOST))
    assert plain_chat(too_long, "r", 7) is not None
    assert read[-1] == too_long


def test_a_body_that_simdjson_can_not_read_leaves_it_fit_for_the_next() -> None:
    for broken in (
        body(raw(FILL + "\\ud800")),
        body(one(LONG))[:-1],
        body("[" * 3000 + "]" * 3000),
        body('["' + FILL + '"]'),
    ):
        assert plain_chat(broken, "r", 7) is None
        same(body(one(LONG)))


def test_where_there_is_no_simdjson_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simdjson", None)
    assert long_messages._parser() is None


def test_what_was_forgotten_is_read_again(read_by: str) -> None:
    data = body(json.dumps([{"role": "developer", "content": LONG}, {"content": "hi", "role": "user"}]))
    plain = plain_chat(data, "r", 7)
    assert plain is not None
    messages = plain[0].messages
    assert isinstance(messages, WrittenMessages)
    before = tuple(messages)
    messages.forget()
    assert (len(messages), messages[1].content, messages[:1]) == (2, "hi", before[:1])
    messages.forget()
    assert messages == before
    assert before == messages
    assert messages == plain[0].messages
    assert messages != before[:1]
    assert messages != "text"
    assert hash(messages) == hash(before)
    assert messages.characters == (len(messages.json) if read_by == "simdjson, texts not wanted" else len(LONG) + 2)
    assert codec.decode_as(InferRequest, b"".join(codec.encode_request(plain[0]))).messages == before


@pytest.mark.parametrize("known", [False, True])
def test_whoever_computed_a_prompt_is_known_by_it_also_when_its_text_was_forgotten(known: bool) -> None:
    """``known``: somebody asked for the cuts before."""
    data = body(one(LONG))
    plain = plain_chat(data, "r", 7)
    assert plain is not None
    journey = Journey(plain[0], Call(), "g")
    if known:
        next(iter(journey.cuts()))
    journey.forget_texts()
    assert len(list(journey.cuts())) > 1
    assert list(journey.cuts()) == list(Journey(by_schema(data)[0], Call(), "g").cuts())
    Journey(by_schema(data)[0], Call(), "g").forget_texts()  # of others nothing is forgotten


# The record


def recorded(data: bytes) -> RequestRecord:
    """As whoever reads the stream has it."""
    plain = plain_chat(data, "r", 7)
    assert plain is not None
    pieces = encode(Journey(plain[0], Call(body=kept_json(data)), "g").record())
    return codec.decode_as(RequestRecord, b"".join(pieces))


@pytest.fixture
def fast() -> None:
    if not redaction.marks.wait(30):
        pytest.skip("there is no hyperscan for this platform")


@pytest.mark.usefixtures("fast")
def test_a_long_body_is_in_its_record_as_it_came() -> None:
    data = body(one(LONG), after=', "temperature": 0.70')
    record = recorded(data)
    assert (record.request_body, record.request_json) == (None, orjson.loads(data))
    assert record.request_json == json.loads(kept_body(data))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "content",
    [LONG + "sk_" + "a" * 40, LONG + '"password": "letmein"', "a" * BODY_MAX, "data:image/png;base64," + LONG],
)
def test_of_a_body_with_something_to_be_cut_out_the_text_is_in_the_record(content: str) -> None:
    data = body(one(content))
    record = recorded(data)
    assert (record.request_json, record.request_body) == (None, kept_body(data))


def test_a_short_body_is_in_its_record_as_a_text() -> None:
    data = body(one("hi"))
    record = recorded(data)
    assert (record.request_json, record.request_body) == (None, data.decode())


def test_where_places_of_secrets_are_not_known_the_text_is_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction.marks, "find", lambda _: None)
    data = body(one(LONG))
    assert kept_json(data) == kept_body(data)


@pytest.mark.usefixtures("fast")
def test_what_is_kept_whole_has_nothing_that_would_be_cut_out() -> None:
    draw = random.Random(7)
    marks = ["password: ", '\\"token\\": ', "sk-", "a" * 20, "://", "u:p@h ", "eyJ", "K ", "=", "SECRET=", "12 "]
    whole = 0
    for _ in range(300):
        text = "".join(draw.choices(["the ", *marks], [3000, *[1] * len(marks)], k=700))
        data = body(raw(text))
        kept = kept_json(data)
        whole += type(kept) is bytes
        assert (kept.decode() if type(kept) is bytes else kept) == kept_body(data)
        assert type(kept) is not bytes or CUT not in redaction.without_secrets(data)
    assert 0 < whole < 300
