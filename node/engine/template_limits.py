"""What a chat template can't ask Python's C code for: one call that takes minutes, or a gigabyte.

The clock in :mod:`llmlb.node.engine.templates` looks between two steps of the interpreter, so each single step has to
be short. Everything here raises SecurityError, which is the template's own end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter

MAX_RENDERED_CHARS = 16 * 1024 * 1024
"""Of a prompt, and of every text and list on the way to it."""
MAX_WIDTH = 100_000
"""A number as the argument of a method or filter that makes a text of that width."""
_TAB = 8
_OWNERS = (str, bytes, int)
"""Whose methods make something of a size that is given as a number (ljust, zfill, to_bytes …)."""


def checked(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call that the template makes, when its result can't be huge; iterators become lists."""
    owner = getattr(call, "__self__", None)
    if not isinstance(owner, _OWNERS) or isinstance(owner, bool):
        return args
    if any(isinstance(value, int) and value > MAX_WIDTH for value in [*args, *kwargs.values()]):
        raise SecurityError("a text this wide is not allowed")
    if isinstance(owner, int):
        return args
    name = getattr(call, "__name__", "")
    if name == "replace" and len(args) > 1:
        check_replacement(owner, args[0], args[1])
    elif name == "expandtabs":
        width = args[0] if args else kwargs.get("tabsize", _TAB)
        tab: Any = "\t" if isinstance(owner, str) else b"\t"
        _check(owner.count(tab) * abs(int(width)) + len(owner))
    elif name == "join" and args:
        parts = _listed(args[0])
        _check(_length(parts) + len(owner) * len(parts))
        return (parts, *args[1:])
    elif name == "translate" and args:
        texts = args[0].values() if isinstance(args[0], dict) else ()
        _check(len(owner) * max((len(text) for text in texts if isinstance(text, str)), default=1))
    return args


def check_replacement(text: Any, old: Any, new: Any) -> None:
    """Raises SecurityError for a replacement that makes a huge text."""
    _check(text.count(old) * len(new), "a replacement this long is not allowed")


def _check(size: int, message: str = "a text this long is not allowed") -> None:
    if size > MAX_RENDERED_CHARS:
        raise SecurityError(message)


def _listed(values: Iterable[Any]) -> list[Any]:
    """In steps of the interpreter, between which the clock looks."""
    return [value for value in values]  # noqa: C416  # list() is one step


def _length(parts: Iterable[Any]) -> int:
    total = 0
    for part in parts:
        total += len(part) if isinstance(part, str | bytes) else 1
        _check(total)
    return total


def _values(environment: Environment, values: Iterable[Any], attribute: Any) -> Iterable[Any]:
    if attribute is None:
        return values
    get: Callable[[Any], Any] = make_attrgetter(environment, attribute)
    return (get(value) for value in values)


@pass_environment
def join(environment: Environment, value: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
    """Jinja's filter of this name (nothing is escaped here), bounded."""
    between = str(d)
    parts = []
    for one in _values(environment, value, attribute):
        parts.append(str(one))
    _check(_length(parts) + len(between) * len(parts))
    return between.join(parts)


@pass_environment
def total(environment: Environment, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """Jinja's filter ``sum``, step by step: lists are added too, each time all of them."""
    out = start
    for one in _values(environment, iterable, attribute):
        out = operator.add(out, one)
    return out
