"""How large a value of a chat template is once it is written out, and where a template writes, compares or hashes one.

A template can put a list twice into another one, that one twice into a third, and so on: forty lists whose text is
longer than any disk. Python writes, compares and hashes such a list in one step, at whose end no clock looks. So the
size of what is written, counted once for each list in it, is found out before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators, optimizeconst
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Namespace

MAX_CHARS = 16 * 1024 * 1024
"""Of a value that is written out, about: a number counts as eight."""
_NUMBER = 8
_PAIRS: type = type({}.items())
_CONTAINERS: tuple[type, ...] = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    _PAIRS,
    Namespace,
)
"""Classes proper: to ask for those of ``collections.abc`` takes a hundred times as long."""
_WRITING = """
string safe escape e forceescape upper lower capitalize title trim striptags wordcount wordwrap truncate indent center
replace urlencode urlize xmlattr pprint tojson join sort unique min max dictsort groupby sum reverse
"""
WRITING = _WRITING.split()
"""Filters that write out, compare or hash what they are given."""
_COMPARING = "eq equalto == ne != lt lessthan < le <= gt greaterthan > ge >= in"
COMPARING = _COMPARING.split()
"""Tests that compare."""


def small(value: Any) -> Any:
    """The value, which is small when it is written out; an iterator as a list. Raises SecurityError, RecursionError."""
    if type(value) is str:
        return value
    if isinstance(value, Iterator) and not isinstance(value, LoopContext):
        value = [part for part in value]  # noqa: C416  # list() is one step
    if isinstance(value, _CONTAINERS):
        _size(value, {})
    return value


def _size(value: Any, known: dict[int, int]) -> int:
    """About so many characters. ``known``: by identity; all of it is held by the value, so no other gets its place."""
    if isinstance(value, str | bytes):
        return len(value) + 2
    if not isinstance(value, _CONTAINERS):
        return _NUMBER
    if (found := known.get(id(value))) is not None:
        return found
    known[id(value)] = size = 2  # one that holds itself is written as "[...]"
    for part in _parts(value):
        size += _size(part, known)
        if size > MAX_CHARS:
            raise SecurityError("a value this large is not allowed")
    known[id(value)] = size
    return size


def _parts(value: Any) -> Iterable[Any]:
    pairs: Any
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")  # its own hides everything else
    if isinstance(value, dict | _PAIRS):
        pairs = value.items() if isinstance(value, dict) else value
        return (part for pair in pairs for part in pair)
    parts: Iterable[Any] = value
    return parts


def small_arguments(call: Any) -> Any:
    """A filter or test whose arguments have to be small. Keeps Jinja's marks, which say what else it is to be given."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        return call(*map(small, args), **{name: small(value) for name, value in kwargs.items()})

    return functools.wraps(call)(checked)


def small_call(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, which are small. Those of macros and ``namespace``, which only hold on to them, may be
    anything. Raises SecurityError."""
    if isinstance(call, Macro) or call is Namespace:
        return args, kwargs
    return tuple(map(small, args)), {name: small(value) for name, value in kwargs.items()}


class Generator(CodeGenerator):
    """Jinja's compiler, whose ``~``, comparisons and keys of dictionaries take small values only."""

    def _small(self, node: nodes.Expr, frame: Frame) -> None:
        """A constant is as small as the template itself."""
        if isinstance(node, nodes.Const):
            self.visit(node, frame)
        else:
            self.write("environment.small(")
            self.visit(node, frame)
            self.write(")")

    @optimizeconst
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Nothing is escaped here, so it is always plain text."""
        self.write("str_join((")
        for part in node.nodes:
            self._small(part, frame)
            self.write(", ")
        self.write("))")

    @optimizeconst
    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        parts = [node.expr, *(op.expr for op in node.ops)]
        compare: Callable[[nodes.Expr, Frame], Any] = self._small
        if len(parts) == 2 and any(isinstance(part, nodes.Const) for part in parts):
            compare = self.visit  # ends at the first difference, which is near
        self.write("(")
        compare(node.expr, frame)
        for op in node.ops:
            self.write(f" {operators[op.op]} ")
            compare(op.expr, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for pair in node.items:
            self._small(pair.key, frame)
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("}")
