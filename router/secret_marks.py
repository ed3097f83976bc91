"""Where a secret may stand in a long text, found in one pass over it: by hyperscan, where its wheel is installed.

What is found is a superset: :mod:`llmlb.router.redaction` looks at each place closely, with or without this. Measured
on 2 cores, 64 KiB: prose 19 µs in place of 100, code 18 in place of 1000, JSON 25 in place of 2400. The patterns take
some 0.2 s to compile, so that is done in a thread of its own, once a long text has come.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger("llmlb.router.secret_marks")

Marks = Mapping[bytes, Sequence[int]]
"""Places of each mark, in order."""
LEAST_BYTES = 2048
"""Shorter texts are searched by Python: that takes some microseconds."""
HITS_MAX = 2000
"""Of a text with more places than this somebody made a trap; each costs a call of Python's."""
_SPACE = rb"[ \t\n\r\x0b\x0c]*"


class SecretMarks:
    """Patterns, each with its mark and how many bytes behind the mark its match ends. Never raises.

    One at a time: a text that is searched while another one is gets None, as does every text before the patterns are
    compiled, or where they can't be.
    """

    def __init__(self, patterns: Sequence[tuple[bytes, int, bytes, bool]], *, most: int = HITS_MAX) -> None:
        """Mark, bytes from the mark to the end of the match, regular expression, whether capitals count.

        A mark may have several patterns. ``most``: a text with more places than that gets None.
        """
        self._patterns = tuple(patterns)
        self._most = most
        self.nothing: Marks = {mark: () for mark, *_ in self._patterns}
        """What is found in most texts."""
        self._library: Any = None
        self._base: Any = None
        self._thread: threading.Thread | None = None
        self._free = threading.Lock()
        """Taken while a text is searched: the library's scratch space is for one at a time."""

    def find(self, data: bytes) -> Marks | None:
        """Places by their mark; None: not known here."""
        if len(data) < LEAST_BYTES:
            return None
        if self._base is None:
            self._compile_once()
            return None
        if not self._free.acquire(blocking=False):
            return None
        hits: list[tuple[int, int]] = []
        try:
            self._base.scan(data, match_event_handler=self._hit, context=hits)
        except self._library.error:  # ended by _hit
            return None
        finally:
            self._free.release()
        if not hits:
            return self.nothing
        marks: dict[bytes, list[int]] = {mark: [] for mark, *_ in self._patterns}
        for number, end in hits:
            mark, behind, *_ = self._patterns[number]
            marks[mark].append(end - behind)
        for places in marks.values():
            places.sort()
        return marks

    def _hit(self, number: int, _begin: int, end: int, _flags: int, hits: list[tuple[int, int]]) -> bool:
        """True ends the search."""
        hits.append((number, end))
        return len(hits) > self._most

    def wait(self, seconds: float) -> bool:
        """Compile now, and wait for it; whether it could be done. For tests and benchmarks."""
        self._compile_once()
        if self._thread is not None:
            self._thread.join(seconds)
        return self._base is not None

    def _compile_once(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._compile, name="secret-marks", daemon=True)
            self._thread.start()

    def _compile(self) -> None:
        try:
            # Not a plain import: there is no wheel for every platform.
            library = importlib.import_module("hyperscan")
        except ImportError as error:
            log.info("hyperscan_missing error=%r", str(error))
            return
        base = library.Database()
        flags = [library.HS_FLAG_DOTALL | (0 if exact else library.HS_FLAG_CASELESS) for *_, exact in self._patterns]
        try:
            base.compile(
                expressions=[pattern for _, _, pattern, _ in self._patterns],
                ids=list(range(len(self._patterns))),
                elements=len(self._patterns),
                flags=flags,
            )
        except library.error as error:  # an old processor
            log.warning("hyperscan_unusable error=%r", str(error))
            return
        self._library = library
        self._base = base  # the last: the loop's thread looks at it


def any_of(texts: Sequence[bytes]) -> bytes:
    """A pattern of one of them."""
    return b"(?:" + b"|".join(re.escape(text) for text in texts) + b")"


def before_colon(name: bytes) -> bytes:
    """A pattern of a name, with or without the end of the quotation it is in, and a colon.

    One name a pattern: of a pattern of 30 names hyperscan looks for their endings, which prose is full of (35 µs for
    64 KiB of it in place of 19).
    """
    return re.escape(name) + rb"(?:\\*\")?" + _SPACE + b":"
