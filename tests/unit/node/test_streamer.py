from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmlb.node.engine.streamer import TextStreamer

short = st.text("ab\n€😀", max_size=12)
stops = st.lists(st.text("ab\n€😀", min_size=1, max_size=4), max_size=3).map(tuple)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at these places."""
    at = sorted({min(cut, len(data)) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def until_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """What may be sent of a whole text."""
    begins = [text.find(s) for s in stop if s in text]
    return (text[: min(begins)], True) if begins else (text, False)


@given(short, st.lists(st.integers(0, 48), max_size=8), stops)
def test_whatever_the_pieces_the_text_ends_before_the_first_stop_text(
    text: str, cuts: list[int], stop: tuple[str, ...]
) -> None:
    streamer = TextStreamer(stop)
    out = ""
    for piece in pieces(text.encode(), cuts):
        out += streamer.feed(piece)
    out += streamer.finish()
    assert (out, streamer.stopped) == until_stop(text, stop)


@given(short, st.lists(st.integers(0, 48), max_size=8), stops, short)
def test_nothing_is_sent_that_a_later_piece_would_take_back(
    text: str, cuts: list[int], stop: tuple[str, ...], more: str
) -> None:
    streamer = TextStreamer(stop)
    out = "".join(streamer.feed(piece) for piece in pieces(text.encode(), cuts))
    assert until_stop(text + more, stop)[0].startswith(out)


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_bytes_that_are_no_utf_8_become_replacement_characters(data: bytes, cuts: list[int]) -> None:
    streamer = TextStreamer()
    out = "".join(streamer.feed(piece) for piece in pieces(data, cuts)) + streamer.finish()
    assert out == data.decode("utf-8", "replace")


def test_half_a_code_point_waits_for_the_other_half() -> None:
    streamer = TextStreamer()
    assert streamer.feed("€".encode()[:2]) == ""
    assert streamer.feed("€".encode()[2:]) == "€"


def test_the_beginning_of_a_stop_text_waits_and_is_sent_when_it_turns_out_to_be_none() -> None:
    streamer = TextStreamer(("STOP",))
    assert streamer.feed(b"a ST") == "a "
    assert streamer.feed(b"ILL") == "STILL"
    assert not streamer.stopped


def test_after_a_stop_text_nothing_more_comes() -> None:
    streamer = TextStreamer(("END",))
    assert streamer.feed(b"xENDy") == "x"
    assert streamer.stopped
    assert streamer.feed(b"more") == ""
    assert streamer.finish() == ""
