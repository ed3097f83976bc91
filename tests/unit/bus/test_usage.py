"""A count of tokens that nothing can hold is no reply of a node."""

from __future__ import annotations

import pytest

from llmlb.bus import codec
from llmlb.bus.errors import BadMessage
from llmlb.bus.messages.infer import TOKENS_MAX, End, Usage


def end(tokens: int) -> bytes:
    """As a node writes it, whatever it counts."""
    written = codec.encode(
        End(request_id="r", seq=0, finish_reason="stop", usage=Usage(prompt_tokens=12345, completion_tokens=1))
    )
    return written.replace(b"12345", b"%d" % tokens)


@pytest.mark.parametrize("tokens", [TOKENS_MAX + 1, 2**63, 2**70, -1])
def test_what_is_no_count_is_refused(tokens: int) -> None:
    with pytest.raises(BadMessage):
        codec.decode_reply(end(tokens))


@pytest.mark.parametrize("tokens", [0, 1, TOKENS_MAX])
def test_every_count_is_read(tokens: int) -> None:
    read = codec.decode_reply(end(tokens))
    assert isinstance(read, End)
    assert read.usage.prompt_tokens == tokens
