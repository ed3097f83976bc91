"""Whether llama.cpp can work with a grammar: it reads brackets by recursion, and follows every open reading at once.

For each token of an answer it looks at the whole vocabulary once for each place in the grammar where the answer may
stand. 1,000 places take 1.6 s (SmolLM2's 49,000 tokens, measured on 2 cores), during which nobody else's answer moves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from llmlb.bus.errors import InvalidRequest

MAX_BYTES = 512 * 1024
MAX_DEPTH = 500
"""Brackets within brackets. llama.cpp ended the process at 20,000."""
MAX_OPEN = 2000
"""Places where an answer may stand before its next character."""
MAX_EMPTY = 32
"""Repetitions of what may be nothing. All are open from the first character on, and each character of a token opens
them anew from each: ``(a?){32}`` takes 0.1 s a token, ``(a?){100}`` 11 s."""
_ROUNDS = 5
"""Rules that refer to each other are measured again until nothing changes: twice or thrice."""

_TOKEN = re.compile(
    r"""\s+|"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|(?P<name>[A-Za-z0-9-]+)|(?P<times>[?*+]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})"""
    r"""|(?P<mark>[()|])|.""",
    re.DOTALL,
)
_RULE = re.compile(r"^([A-Za-z0-9-]+) ::= (.*)$", re.MULTILINE)


@dataclass(slots=True)
class _Item:
    """One element of a sequence, or a whole one."""

    empty: bool = False
    """It may be nothing."""
    first: int = 1
    """Places open at its begin."""
    most: int = 1
    """Places open at once, anywhere in it; what it refers to is looked at for itself."""
    wild: int = 1
    """Repetitions of what may be nothing, one within the other or one after the other."""
    streak: int = 0
    """How much it adds to those one after the other."""


@dataclass(slots=True)
class _Level:
    """An open bracket, or the rule itself."""

    done: list[_Item] = field(default_factory=list)
    """Alternatives that are over."""
    items: list[_Item] = field(default_factory=list)

    def close(self) -> _Item:
        done = [*self.done, _in_a_row(self.items)]
        first = sum(one.first for one in done)
        return _Item(
            any(one.empty for one in done),
            first,
            max(first, *(one.most for one in done)),
            max(one.wild for one in done),
        )


def _in_a_row(items: list[_Item]) -> _Item:
    """A sequence. From each place in it all are open up to the end of the next thing that is not nothing."""
    first, most, run, begun = 0, 0, 0, False
    wild, streak = 1, 0
    for item in items:
        streak = streak + item.streak if item.empty else 0
        wild = max(wild, item.wild, streak)
        run += item.first
        most = max(most, run, item.most)
        if not begun:
            first, begun = run, not item.empty
        if not item.empty:
            run = 0
    return _Item(not begun, first, most, wild)


def check(grammar: str) -> None:
    """Raises InvalidRequest for a grammar that llama.cpp can't work with."""
    if len(grammar) > MAX_BYTES:
        raise _refused("too large")
    rules = dict(_RULE.findall(grammar))
    known: dict[str, _Item] = {}
    order = _inside_out(rules)
    for _ in range(_ROUNDS):
        before = dict(known)
        for name in order:
            found = known[name] = _measured(rules[name], known)
            if found.most > MAX_OPEN or found.wild > MAX_EMPTY:
                raise _refused("too ambiguous, or has too many alternatives")
        if known == before:
            return


def _inside_out(rules: dict[str, str]) -> list[str]:
    """The rules, each after those that it refers to, as far as they don't refer to each other."""
    out: list[str] = []
    seen: set[str] = set()
    for root in rules:
        path = [(root, iter(_names(rules[root])))] if root not in seen else []
        seen.add(root)
        while path:
            name, rest = path[-1]
            inner = next((one for one in rest if one in rules and one not in seen), None)
            if inner is None:
                out.append(name)
                path.pop()
            else:
                seen.add(inner)
                path.append((inner, iter(_names(rules[inner]))))
    return out


def _names(body: str) -> list[str]:
    return [found["name"] for found in _TOKEN.finditer(body) if found["name"]]


def _measured(body: str, known: dict[str, _Item]) -> _Item:
    levels = [_Level()]
    for found in _TOKEN.finditer(body):
        text, level = found.group(), levels[-1]
        if text.isspace():
            continue
        if text == "(":
            levels.append(_Level())
            if len(levels) > MAX_DEPTH:
                raise _refused("nested too deeply")
        elif text == ")" and len(levels) > 1:
            levels[-2].items.append(levels.pop().close())
        elif text == "|":
            level.done.append(_in_a_row(level.items))
            level.items = []
        elif found["times"] and level.items:
            level.items.append(_repeated(level.items.pop(), text))
        else:
            unknown = _Item(first=0, most=0)
            level.items.append(known.get(found["name"], unknown) if found["name"] else _Item(text == '""'))
    return levels[0].close()


def _repeated(item: _Item, times: str) -> _Item:
    numbers = [int(number) for number in re.findall(r"\d+", times)]
    least = numbers[0] if numbers else int(times == "+")
    most = max(numbers, default=1)
    if item.empty:
        first, wild = item.first * most, item.wild * most
        return _Item(True, first, max(item.most, first), wild, streak=wild)
    return _Item(least == 0, item.first, item.most, item.wild, streak=1)


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"the JSON schema can't be enforced: it is {why}", param="response_format")
