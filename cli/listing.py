"""Prints what a command asked for: as text or JSON, once or again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmlb.bus.errors import InvalidRequest
from llmlb.cli.options import show_json


def show(
    look: Callable[[], Any], text: Callable[[Any], str], *, json: bool, watch: bool = False, every: str | None = None
) -> None:
    """``look`` asks, ``text`` renders. Raises InvalidRequest for an interval without ``watch``, and as ``look``."""
    if watch:
        from llmlb.cli import watch as watching

        watching.watch(look, text, as_json=json, interval=every)
    if every is not None:
        raise InvalidRequest("--interval goes with --watch")
    found = look()
    if json:
        show_json(found)
    else:
        print(text(found))
