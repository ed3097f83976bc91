"""One answer, from the bytes of its tokens to the pieces that a client gets: thinking, text, tool calls. Pure.

bytes → whole code points → thinking apart → stop texts → tool calls apart. Stop texts end the answer, not the thinking.
"""

from __future__ import annotations

import codecs

from llmlb.node.engine.interface import Piece
from llmlb.node.engine.reasoning import Markers, ThinkSplitter
from llmlb.node.engine.streamer import StopFilter
from llmlb.node.engine.tool_reader import ToolReader


class AnswerReader:
    """Reads one answer. ``chat`` False: plain text, where neither thinking nor tools are looked for."""

    def __init__(
        self,
        *,
        stop: tuple[str, ...] = (),
        chat: bool = True,
        opened: Markers | None = None,
        tools: ToolReader | None = None,
    ) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._think = ThinkSplitter(opened) if chat else None
        self._filter = StopFilter(stop)
        self._tools = tools

    @property
    def stopped(self) -> bool:
        """True once a stop text was met; the answer ends before it."""
        return self._filter.stopped

    @property
    def met(self) -> str | None:
        """The stop text that ended the answer."""
        return self._filter.met

    @property
    def thinking(self) -> bool:
        """True inside a block of thinking."""
        return self._think is not None and self._think.thinking

    @property
    def closing(self) -> str | None:
        """What would end the thinking here; None: nothing to end, or amid a character."""
        return None if self._think is None or self._decoder.getstate()[0] else self._think.closing

    @property
    def called(self) -> bool:
        """True once a tool call went out."""
        return self._tools is not None and self._tools.count > 0

    def feed(self, data: bytes) -> Piece:
        """The bytes of one token; what may be sent now."""
        return self._advance(self._decoder.decode(data))

    def finish(self) -> Piece:
        """The answer is over: the rest. An incomplete code point becomes U+FFFD."""
        piece = self._advance(self._decoder.decode(b"", final=True))
        if self._think is not None:
            reasoning, text = self._think.finish()
            piece.reasoning += reasoning
            self._answer(piece, text)
        if not self.stopped:
            self._answer(piece, self._filter.finish(), filtered=True)
        if self._tools is not None:
            text, calls = self._tools.finish()
            piece.text += text
            piece.tool_calls += tuple(calls)
        return piece

    def _advance(self, text: str) -> Piece:
        piece = Piece()
        if self.stopped:
            return piece
        if self._think is not None:
            piece.reasoning, text = self._think.feed(text)
        self._answer(piece, text)
        return piece

    def _answer(self, piece: Piece, text: str, *, filtered: bool = False) -> None:
        """Text of the answer proper, through the stop texts and the tools."""
        if not filtered:
            text = self._filter.feed(text)
        if self._tools is None or not text:
            piece.text += text
            return
        text, calls = self._tools.feed(text)
        piece.text += text
        piece.tool_calls += tuple(calls)
