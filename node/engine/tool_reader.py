"""Takes tool calls out of the text of an answer as it comes. Pure; the formats are in :mod:`llmlb.node.engine.tools`.

A call goes out when it is whole, so a stream never carries arguments that are not a JSON object. What looked like a
call and turns out not to be one goes out as text: nothing is lost but whitespace around calls.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence

from llmlb.bus.messages.infer import Tool, ToolCallPiece
from llmlb.node.engine.streamer import possible_begin
from llmlb.node.engine.tool_parser import BETWEEN, Calls, Parser, decode, written
from llmlb.node.engine.tools import FUNCTIONARY_RECIPIENT, MISTRAL, RECIPIENTS, ToolFormat

_JSON_MARKS = re.compile(r'["\\{}\[\]]')
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)\s*(?:\[CALL_ID\][A-Za-z0-9_-]*)?(?:\[ARGS\])?\s*(?=\{)")
_NAMED_BEGIN = re.compile(r"[A-Za-z0-9_.-]+\s*(?:\[[A-Z_]*(?:\][A-Za-z0-9_-]*)?)*\s*")
_BARE = re.compile(r'(?:\[\s*)?\{\s*"(?:name|type|function|id|parameters|arguments|tool_calls)"')
_BARE_BEGIN = re.compile(r'(?:\[\s*)?(?:\{\s*(?:"[a-z_]*)?)?')
_RECIPIENT = re.compile(r"([A-Za-z0-9_.-]+)\n")
_RECIPIENT_BEGIN = re.compile(r"[A-Za-z0-9_.-]*")


class ToolReader:
    """Takes calls out of the text of an answer as it comes.

    What it makes of a text does not depend on the pieces in which it comes. Whitespace around calls is dropped; that
    before the first one stays between the text before and the text after.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[Tool]) -> None:
        self._format = format
        self._parser = Parser(tools)
        self._held = ""
        self._space = ""
        """Whitespace before what may be a call."""
        self._gap: str | None = None
        """Whitespace between the last text and the next; None before the first text."""
        self._begun = False
        """True once there was anything but whitespace: a bare call can only be the first."""
        self._after = False
        """True right after a call."""
        self._mark: str | None = None
        """What began the call that ``held`` may be, "" for a bare one; None outside of calls."""
        self._scan = (0, 0, False)
        """How far the JSON in ``held`` was read: place, depth, within a text."""
        self.count = 0
        """Calls given out so far."""
        if format is FUNCTIONARY_RECIPIENT:  # its prompts end with the first marker
            self._candidate("", 0)

    def feed(self, text: str) -> tuple[str, list[ToolCallPiece]]:
        """More text: what of it is answer, and the calls that are whole now."""
        self._held += text
        return self._read(final=False)

    def finish(self) -> tuple[str, list[ToolCallPiece]]:
        """It is over: the rest, parsed if it can be."""
        return self._read(final=True)

    def _read(self, *, final: bool) -> tuple[str, list[ToolCallPiece]]:
        out: list[str] = []
        calls: list[ToolCallPiece] = []
        while self._mark is not None or self._look(out, final):
            taken = self._take(final)
            if taken is None:
                break
            end, found = taken
            whole, self._held, self._mark = self._held[:end], self._held[end:], None
            self._begun, self._after = True, bool(found)
            if found is None:
                self._say(self._space + whole, out)
            else:
                calls += self._number(found)
                self._gap = self._gap if self._gap is None else self._gap or self._space
            self._space = ""
        return "".join(out), calls

    def _say(self, text: str, out: list[str]) -> None:
        if text:
            out += self._gap or "", text
            self._gap = ""

    def _candidate(self, mark: str, at: int) -> None:
        """From this place of what is held on it may be a call."""
        self._held = self._held[at:]
        self._mark, self._scan = mark, (0, 0, False)

    def _look(self, out: list[str], final: bool) -> bool:
        """Outside of calls: text goes out up to where a call may begin. True when one may begin there."""
        if self._after and not self._follow(final):
            return False
        if self._mark is not None:
            return True
        held = self._held
        start = len(held) - len(held.lstrip())
        if self._format.bare and not self._begun and start < len(held) and held[start] in "{[":
            self._space = held[:start]
            self._candidate("", start)
            return True
        at, mark = min(((at, mark) for mark in self._format.opens if (at := held.find(mark)) >= 0), default=(-1, ""))
        keep = at if at >= 0 else len(held) if final else possible_begin(held, self._format.opens)
        text = held[:keep]
        if at >= 0 or not final:
            text = text.rstrip()
        self._begun = self._begun or bool(text)
        self._say(text, out)
        if at < 0:
            self._held = held[len(text) :]
            return False
        self._space = held[len(text) : keep]
        self._candidate(mark, keep)
        return True

    def _follow(self, final: bool) -> bool:
        """Right after a call: whitespace goes; in formats without an end marker another call may follow at once.

        False: more is needed.
        """
        held = self._held.lstrip()
        if self._format.close or self._format in RECIPIENTS:
            self._held, self._after = held, not held
            return bool(held)
        at = BETWEEN.match(held).end()  # type: ignore[union-attr]
        rest = held[at:]
        if not rest or (not final and any(mark.startswith(rest) and mark != rest for mark in self._format.opens)):
            return False
        self._after = False
        if rest.startswith(self._format.opens):
            self._held = rest
        elif rest[0] in "{[" or (self._format is MISTRAL and _NAMED_BEGIN.match(rest)):
            self._held, self._space = held, held[:at] if held[:at].strip() else ""
            self._candidate("", at)
        else:
            self._held = held
        return True

    def _take(self, final: bool) -> tuple[int, Calls | None] | None:
        """What is held begins like a call. (end, its calls), (end, None) when that much is text, None: more needed."""
        if self._format in RECIPIENTS:
            taken = self._take_addressed()
        elif self._format.close:
            taken = self._take_closed(final)
        else:
            taken = self._take_open()
        if taken is None and final:
            return self._text
        return taken

    @property
    def _text(self) -> tuple[int, None]:
        """It is no call: its marker is text, and what follows is looked at anew."""
        return len(self._mark or ""), None

    def _take_closed(self, final: bool) -> tuple[int, Calls | None] | None:
        begin = 0 if self._mark == "<function=" else len(self._mark or "")
        inside = self._held[begin:].lstrip()
        if inside and inside[0] not in "{[<":
            return self._text
        end = begin
        while (end := self._held.find(self._format.close, end)) >= 0:
            after = end + len(self._format.close)
            body = self._held[begin : after if begin == 0 else end]
            calls = self._parser.body(body)
            if calls is not None:
                return after, calls
            if not self._in_json_text(body):
                return self._text
            end = after
        if final and (calls := self._parser.body(self._held[begin:])) is not None:
            return len(self._held), calls
        return None

    @staticmethod
    def _in_json_text(body: str) -> bool:
        """Whether JSON ends within a text: then the marker that ended it is part of that text."""
        begin = min((at for at in (body.find("{"), body.find("[")) if at >= 0), default=-1)
        if begin < 0 or "<parameter=" in body[:begin]:
            return False
        return re.sub(r"\\.", "", body[begin:], flags=re.DOTALL).count('"') % 2 == 1

    def _take_open(self) -> tuple[int, Calls | None] | None:
        """A call that ends with its JSON."""
        mark, held = self._mark or "", self._held
        at = len(mark) + len(held[len(mark) :]) - len(held[len(mark) :].lstrip())
        if at == len(held):
            return None
        if held[at] in "{[":
            if not mark and not self.count and not _BARE.match(held):
                return None if _BARE_BEGIN.fullmatch(held) else self._text
            end = self._json_end(at)
            return None if end < 0 else self._judged(held[at:end], end, bare=not mark)
        named = _NAMED.match(held, at)
        if named is None:
            return None if _NAMED_BEGIN.fullmatch(held, at) else self._text
        if not mark and named[1] not in self._parser.names:
            return self._text
        end = self._json_end(named.end())
        return None if end < 0 else self._addressed(named[1], held[named.end() : end], end)

    def _take_addressed(self) -> tuple[int, Calls | None] | None:
        """A recipient in a line of its own, then its JSON; or the user, and text."""
        mark, held = self._mark or "", self._held
        head = _RECIPIENT.match(held, len(mark))
        if head is None:
            return None if _RECIPIENT_BEGIN.fullmatch(held, len(mark)) else self._text
        if head[1] == "all" and self._format is FUNCTIONARY_RECIPIENT:
            return head.end(), []
        rest = held[head.end() :].lstrip()
        if not rest:
            return None
        if rest[0] != "{" or not self._parser.names:
            return self._text
        start = len(held) - len(rest)
        end = self._json_end(start)
        return None if end < 0 else self._addressed(head[1], held[start:end], end)

    def _judged(self, text: str, end: int, *, bare: bool) -> tuple[int, Calls | None]:
        try:
            calls = self._parser.value(decode(text)[0], bare=bare)
        except (ValueError, RecursionError):
            calls = None
        return (end, calls) if calls is not None else self._text

    def _addressed(self, name: str, text: str, end: int) -> tuple[int, Calls | None]:
        arguments = written(text)
        return (end, [(name, arguments)]) if arguments is not None else self._text

    def _json_end(self, start: int) -> int:
        """Where the object or list that begins at ``start`` of what is held ends; -1: not yet. Each char once."""
        at, depth, quoted = self._scan
        at = max(at, start)
        while (found := _JSON_MARKS.search(self._held, at)) is not None:
            char, at = found[0], found.end()
            if quoted:
                if char == "\\":
                    if at == len(self._held):
                        self._scan = (at - 1, depth, quoted)
                        return -1
                    at += 1
                elif char == '"':
                    quoted = False
            elif char == '"':
                quoted = True
            elif char != "\\":
                depth += 1 if char in "{[" else -1
                if depth == 0:
                    return at
        self._scan = (len(self._held), depth, quoted)
        return -1

    def _number(self, calls: Iterable[tuple[str, str]]) -> list[ToolCallPiece]:
        pieces = []
        for name, arguments in calls:
            identifier = f"call_{uuid.uuid4().hex[:24]}"
            pieces.append(ToolCallPiece(index=self.count, id=identifier, name=name, arguments=arguments))
            self.count += 1
        return pieces
