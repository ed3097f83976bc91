"""Repetitions of a grammar, as llama.cpp takes them: ``item{2,5}``.

llama-cpp-python's converter writes them out, one bracket within the other; llama.cpp reads brackets by recursion, so
``"maxLength": 20000`` ended the process. llama.cpp itself takes up to 2,000 of one; more are made of blocks here:
exact, each number in one way only, so that few readings of an answer are open at any time.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

DIRECT = 2000
"""Source: llama-grammar.cpp, MAX_REPETITION_THRESHOLD."""
MANY = 1_000_000
"""More of something fit into no answer: a larger limit is none, and a larger minimum can't be met."""
MAX_ELEMENTS = 100_000
"""Elements of all repetitions of a grammar together, written out as llama.cpp does inside."""
_INLINE = 16


class Repeats:
    """The repetitions of one grammar; equal ones share a rule."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._elements = 0

    @property
    def rules(self) -> str:
        """The rules that :meth:`build` refers to, a line each."""
        return "".join(f"\n{name} ::= {body}" for body, name in self._names.items())

    def build(
        self,
        item_rule: str,
        min_items: Any,
        max_items: Any,
        separator_rule: str | None = None,
        item_rule_is_literal: bool = False,
    ) -> str:
        """``item_rule`` from ``min_items`` to ``max_items`` times (None: any number), with separators between.

        In place of the converter's own ``_build_repetition``. Raises ValueError for what can't be, or is too much.
        """
        least = _whole(min_items)
        most = None if max_items is None else _whole(max_items)
        if least > MANY or (most is not None and most < least):
            raise ValueError(f"{min_items} to {max_items} repetitions are not possible")
        if most is not None and most > MANY:
            most = None
        if not separator_rule:
            return self._between(item_rule, least, most)
        if most == 0:
            return ""
        more = self._named(f"{separator_rule} {item_rule}")
        rest = self._between(more, max(0, least - 1), None if most is None else most - 1)
        return f"{item_rule} {rest}" if least else f"({item_rule} {rest})?"

    def _between(self, item: str, least: int, most: int | None) -> str:
        if (least, most) == (1, None):
            return f"{item}+"
        rest = f"{item}*" if most is None else self._up_to(item, most - least)
        return f"{self._times(item, least)} {rest}".strip()

    def _times(self, item: str, count: int) -> str:
        """Exactly so many."""
        if count <= 1:
            return item * count
        if count <= DIRECT:
            return self._written(item, count, f"{item}{{{count}}}")
        size = isqrt(count)
        blocks, rest = divmod(count, size)
        block = self._times(item, size)
        return f"{self._times(self._named(block), blocks)} {self._times(item, rest)}".strip()

    def _up_to(self, item: str, count: int) -> str:
        """As many, or fewer."""
        if count <= 1:
            return f"{item}?" * count
        if count <= DIRECT:
            return self._written(item, count, f"{item}{{0,{count}}}")
        size = isqrt(count)
        blocks, rest = divmod(count, size)
        block = self._named(self._times(item, size))
        fewer = f"{self._up_to(block, blocks - 1)} {self._up_to(item, size - 1)}"
        all_blocks = f"{self._times(block, blocks)} {self._up_to(item, rest)}"
        return self._named(f"{fewer} | {all_blocks}")

    def _written(self, item: str, count: int, text: str) -> str:
        if count <= _INLINE:
            return text
        if text not in self._names:
            self._elements += count * (len(item) if item.startswith('"') else 1)
            if self._elements > MAX_ELEMENTS:
                raise ValueError("it asks for too many repetitions")
        return self._named(text)

    def _named(self, body: str) -> str:
        """The name of a rule with this body: one element, however it is repeated itself."""
        return self._names.setdefault(body, f"llmlb-repeat-{len(self._names)}")


def _whole(value: Any) -> int:
    """A number of times. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
        raise ValueError(f"{str(value)[:20]} is no number of repetitions")
    return int(value)


def converted(converter: Any, schema: str) -> str:
    """The GBNF of a JSON schema by llama-cpp-python's converter (its module), with repetitions as above."""
    repeats = Repeats()
    theirs = converter._build_repetition
    converter._build_repetition = repeats.build
    try:
        grammar: str = converter.json_schema_to_gbnf(schema)
    finally:
        converter._build_repetition = theirs
    return grammar + repeats.rules
