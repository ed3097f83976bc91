"""One answer as a row of blocks: thinking, text, calls of tools; one of them open at a time. Pure.

The surfaces that number their pieces (Anthropic's content blocks, OpenAI's output items) are made of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from llmlb.bus.messages.infer import Delta, TokenLogprob, ToolCallPiece
from llmlb.router.gateway.answers import Answer

Kind = Literal["thinking", "text", "call"]


@dataclass(slots=True)
class Block:
    """One of them."""

    index: int
    kind: Kind
    call: ToolCallPiece | None = None
    """Of a call: its first piece, with id and name."""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that has come of it; of a call, its arguments as JSON text."""
        return "".join(self.pieces)

    @property
    def call_id(self) -> str:
        return "" if self.call is None else self.call.id or ""

    @property
    def name(self) -> str:
        return "" if self.call is None else self.call.name or ""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens next: a block opens, has more text, or is closed."""

    what: Literal["open", "more", "close"]
    block: Block
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


class Blocks:
    """Give it the deltas in order, then :meth:`finish`.

    White space before a block of text or thinking is held back until something else follows, and forgotten when
    nothing does: models put line breaks between their thinking and their calls, and no client wants blocks of them.
    """

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.open: Block | None = None
        self._held: tuple[Kind, str, tuple[TokenLogprob, ...]] | None = None

    def feed(self, delta: Delta) -> Iterator[Step]:
        """The next piece."""
        if delta.reasoning:
            yield from self._written("thinking", delta.reasoning, ())
        if delta.text:
            yield from self._written("text", delta.text, delta.logprobs)
        for piece in delta.tool_calls:
            yield from self._called(piece)

    def finish(self) -> Iterator[Step]:
        """The answer is over. One of nothing but white space is given out as it is."""
        if self._held is not None and not self.all:
            kind, text, logprobs = self._held
            yield self._opened(Block(0, kind))
            yield self._more(self.all[0], text, logprobs)
        yield from self._closed()

    def _written(self, kind: Kind, text: str, logprobs: tuple[TokenLogprob, ...]) -> Iterator[Step]:
        block = self.open
        if block is None or block.kind != kind:
            if self._held is not None and self._held[0] == kind:
                text, logprobs = self._held[1] + text, self._held[2] + logprobs
            if not text.strip():
                self._held = (kind, text, logprobs)
                return
            yield from self._closed()
            block = Block(len(self.all), kind)
            yield self._opened(block)
        yield self._more(block, text, logprobs)

    def _called(self, piece: ToolCallPiece) -> Iterator[Step]:
        block = self.open
        if block is None or block.call is None or block.call.index != piece.index:
            yield from self._closed()
            block = Block(len(self.all), "call", call=piece)
            yield self._opened(block)
        if piece.arguments:
            yield self._more(block, piece.arguments)

    def _opened(self, block: Block) -> Step:
        self._held = None
        self.open = block
        self.all.append(block)
        return Step("open", block)

    @staticmethod
    def _more(block: Block, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Step:
        block.pieces.append(text)
        block.logprobs += logprobs
        return Step("more", block, text, logprobs)

    def _closed(self) -> Iterator[Step]:
        if self.open is not None:
            block, self.open = self.open, None
            yield Step("close", block)


def blocks_of(answer: Answer) -> list[Block]:
    """The blocks of an answer that came in one piece: thinking, then text, then calls."""
    blocks = Blocks()
    whole = Delta(
        request_id="",
        seq=0,
        text=answer.text,
        reasoning=answer.reasoning,
        tool_calls=tuple(answer.tool_calls),
        logprobs=tuple(answer.logprobs),
    )
    for _ in blocks.feed(whole):
        pass
    for _ in blocks.finish():
        pass
    return blocks.all
