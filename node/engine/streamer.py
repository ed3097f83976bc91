"""From the bytes of tokens to text that may be sent: whole code points, and nothing of a stop text. Pure."""

from __future__ import annotations

import codecs


class TextStreamer:
    """The text of one answer, piece by piece.

    Nothing is given out that a later piece could turn into a stop text, so what went out never has to be taken back.
    The stop text that begins first ends the answer; of two that begin together, it makes no difference which.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        """True once a stop text was met; everything before it has been given out."""
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, piece: bytes) -> str:
        """Take the bytes of one token; the text that may be sent now."""
        return self._advance(self._decoder.decode(piece))

    def finish(self) -> str:
        """The answer is over: the rest. An incomplete code point becomes U+FFFD."""
        out = self._advance(self._decoder.decode(b"", final=True))
        if self.stopped:
            return out
        rest, self._held = self._held, ""
        begin = self._first_stop(rest)
        if begin >= 0:
            self.stopped = True
            rest = rest[:begin]
        return out + rest

    def _first_stop(self, text: str) -> int:
        """Where the first whole stop text begins, -1 if there is none."""
        return min((at for at in (text.find(stop) for stop in self._stop) if at >= 0), default=-1)

    def _advance(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return text
        self._held += text
        begin = self._first_stop(self._held)
        keep = self._possible_begin()
        if begin >= 0 and begin <= keep:
            self.stopped = True
            out, self._held = self._held[:begin], ""
            return out
        out, self._held = self._held[:keep], self._held[keep:]
        return out

    def _possible_begin(self) -> int:
        """Where the earliest stop text may begin that is not whole yet; the length of what is held if nowhere."""
        size = len(self._held)
        longest = max(len(stop) for stop in self._stop)
        for at in range(max(0, size - longest + 1), size):
            tail = self._held[at:]
            if any(stop.startswith(tail) for stop in self._stop):
                return at
        return size
