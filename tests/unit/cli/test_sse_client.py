from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import LlmlbError
from llmlb.cli.sse_client import SseReader
from tests.unit.cli.fake_gateway import stream, text


@given(st.lists(st.text(max_size=10), max_size=5), st.lists(st.integers(0, 400), max_size=10), st.booleans())
def test_events_are_read_whatever_the_pieces(texts: list[str], cuts: list[int], crlf: bool) -> None:
    texts = [piece.encode("utf-8", "ignore").decode() for piece in texts]
    data = b": a comment\n\n" + stream(*(text(piece) for piece in texts), finish=False)
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    at = sorted({min(cut, len(data)) for cut in cuts})
    reader = SseReader()
    got = [e for a, b in zip([0, *at], [*at, len(data)], strict=True) for e in reader.feed(data[a:b])]
    assert got == [*(text(piece) for piece in texts), None]


def test_an_event_that_is_not_json_is_an_error() -> None:
    with pytest.raises(LlmlbError, match="not JSON"):
        list(SseReader().feed(b"data: {oops\n\n"))


def test_what_is_no_data_line_is_skipped_and_data_lines_are_one_event() -> None:
    data = b'event: x\nid: 7\n\n: ping\n\ndata: {"a":\ndata: 1}\n\ndata: [1]\n\n'
    assert list(SseReader().feed(data)) == [{"a": 1}]


def test_an_event_without_its_blank_line_is_not_read() -> None:
    assert list(SseReader().feed(b'data: {"a": 1}\n')) == []
