"""Arguments and options without pydantic.

typer 0.29 builds a pydantic adapter for each of them, the unused ones too, and so imports pydantic for every command:
80 ms of a 150 ms process. A value that has its type already (a word of the command line where text is wanted) needs no
adapter; everything else still goes through typer's own. Source: typer/_coercion.py and typer/core.py of 0.29.2.
"""

from __future__ import annotations

from typing import Any

from typer import core


class _Plain:
    """In place of typer's RuntimeParam. ``build`` makes the real one, when it is needed."""

    def __init__(self, descriptor: Any, build: Any) -> None:
        self._descriptor = descriptor
        self._build = build
        self._real: Any = None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        wanted = self._descriptor.annotation
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if self._descriptor.parameter_info.parser is None:
            if wanted is str and not several and type(value) is str:
                return value
            if wanted == list[str] and type(value) is tuple and all(type(item) is str for item in value):
                return list(value)
        if self._real is None:
            self._real = self._build(self._descriptor)
        return self._real.coerce(value, param=param, ctx=ctx)


def install() -> None:
    """Put it in place. A typer that is built otherwise stays as it is, which is only slower."""
    build = getattr(core, "build_runtime_param", None)
    if build is None or getattr(build, "of_llmlb", False):
        return

    def plain(descriptor: Any) -> _Plain:
        return _Plain(descriptor, build)

    plain.of_llmlb = True  # type: ignore[attr-defined]
    core.build_runtime_param = plain  # type: ignore[attr-defined,assignment]
