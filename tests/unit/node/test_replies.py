"""The worker's pieces of an answer, which are made without the message class that describes them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus import codec
from llmlb.bus.messages.infer import Delta, TokenLogprob, ToolCallPiece, TopLogprob
from llmlb.node.engine.interface import Piece
from llmlb.node.engine.worker import delta_bytes

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(-100, 0, allow_nan=False)
tops = st.builds(TopLogprob, token=texts, token_bytes=st.tuples(st.integers(0, 255)), logprob=numbers)
logprobs = st.builds(
    TokenLogprob,
    token=texts,
    token_bytes=st.lists(st.integers(0, 255), max_size=3).map(tuple),
    logprob=numbers,
    top=st.lists(tops, max_size=2).map(tuple),
)
calls = st.builds(ToolCallPiece, index=st.integers(0, 3), id=st.none() | texts, name=st.none() | texts, arguments=texts)
pieces = st.builds(
    Piece,
    text=texts,
    reasoning=texts,
    token_ids=st.lists(st.integers(0, 1 << 20), max_size=3).map(tuple),
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    logprobs=st.lists(logprobs, max_size=2).map(tuple),
)


@given(pieces)
def test_a_piece_is_read_as_the_message_that_it_is(piece: Piece) -> None:
    read = codec.decode_reply(delta_bytes("r1", 7, piece))
    assert read == Delta(
        request_id="r1",
        seq=7,
        sent_at=read.sent_at,
        text=piece.text,
        token_ids=piece.token_ids,
        reasoning=piece.reasoning,
        tool_calls=piece.tool_calls,
        logprobs=piece.logprobs,
    )


def test_every_field_of_a_delta_is_sent_when_it_says_something() -> None:
    full = Piece("a", "b", (ToolCallPiece(index=0),), (1,), (TokenLogprob(token="a", token_bytes=(97,), logprob=0.0),))
    read = codec.decode_reply(delta_bytes("r1", 7, full))
    assert read.model_fields_set == set(Delta.model_fields), "a new field has to be sent too"


def test_what_says_nothing_is_left_out() -> None:
    read = codec.decode_reply(delta_bytes("r1", 7, Piece(text="a", token_ids=(1,))))
    assert read.model_fields_set == {"type", "sent_at", "request_id", "seq", "text", "token_ids"}
