"""From the bytes of tokens to text that may be sent: whole code points, and nothing of a stop text. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable


def possible_begin(text: str, markers: Iterable[str]) -> int:
    """Where in ``text`` the earliest marker may begin that is not whole yet; the length of ``text`` if nowhere."""
    size = len(text)
    markers = [marker for marker in markers if marker]
    longest = max((len(marker) for marker in markers), default=0)
    for at in range(max(0, size - longest + 1), size):
        tail = text[at:]
        if any(marker.startswith(tail) for marker in markers):
            return at
    return size


class StopFilter:
    """Cuts a text at the first stop text.

    Nothing is given out that a later piece could turn into a stop text, so what went out never has to be taken back.
    The stop text that begins first ends the answer; of two that begin together, it makes no difference which.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        """True once a stop text was met; everything before it has been given out."""
        self.met: str | None = None
        """Which one; of several that begin together, the longest that is whole."""
        self._stop = tuple(text for text in stop if text)
        self._held = ""

    def feed(self, text: str) -> str:
        """More text; what of it may be sent now."""
        if self.stopped:
            return ""
        if not self._stop:
            return text
        self._held += text
        begin = self._first_stop(self._held)
        keep = possible_begin(self._held, self._stop)
        if begin >= 0 and begin <= keep:
            self._stops(self._held, begin)
            out, self._held = self._held[:begin], ""
            return out
        out, self._held = self._held[:keep], self._held[keep:]
        return out

    def finish(self) -> str:
        """The answer is over: the rest."""
        rest, self._held = self._held, ""
        begin = self._first_stop(rest)
        if begin >= 0:
            self._stops(rest, begin)
            rest = rest[:begin]
        return rest

    def _stops(self, text: str, begin: int) -> None:
        self.stopped = True
        self.met = max((stop for stop in self._stop if text.startswith(stop, begin)), key=len)

    def _first_stop(self, text: str) -> int:
        """Where the first whole stop text begins, -1 if there is none."""
        return min((at for at in (text.find(stop) for stop in self._stop) if at >= 0), default=-1)


class TextStreamer:
    """The text of one answer out of the bytes of its tokens, up to a stop text."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._filter = StopFilter(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def stopped(self) -> bool:
        """True once a stop text was met; everything before it has been given out."""
        return self._filter.stopped

    @property
    def met(self) -> str | None:
        """The stop text that ended it."""
        return self._filter.met

    def feed(self, piece: bytes) -> str:
        """Take the bytes of one token; the text that may be sent now."""
        return self._filter.feed(self._decoder.decode(piece))

    def finish(self) -> str:
        """The answer is over: the rest. An incomplete code point becomes U+FFFD."""
        out = self._filter.feed(self._decoder.decode(b"", final=True))
        return out if self.stopped else out + self._filter.finish()
