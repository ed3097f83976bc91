"""Tables with bars in Markdown, and the parts of docs/benchmarks.md that are written by ``make bench``; all pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NONE = "-"
"""A cell for what was not measured."""


@dataclass(frozen=True)
class Bar:
    """What a value must reach: at most ``limit``, or at least."""

    limit: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {number(self.limit)}"


@dataclass(frozen=True)
class Check:
    """A value and its bar; None was not measured, and ``note`` says why."""

    name: str
    unit: str
    value: float | None
    bar: Bar | None = None
    note: str = ""


def number(value: float | None) -> str:
    """Three digits that count, without an exponent: ``0.0123``, ``1.23``, ``12.3``, ``1,235``."""
    if value is None or math.isnan(value):
        return NONE
    if value == 0 or abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{digits}f}"


def verdict(value: float | None, bar: Bar | None) -> str:
    """``ok``, ``**not**``, or nothing where there is no bar or no value."""
    if value is None or bar is None or math.isnan(value):
        return ""
    return "ok" if bar.holds(value) else "**not**"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)) -> str:
    """A Markdown table; the columns in ``left`` are words, the others numbers."""
    words = set(left)
    lines = [_line(head), "|" + "|".join("---" if at in words else "---:" for at in range(len(head))) + "|"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def checks_table(checks: Iterable[Check]) -> str:
    """One row a check."""
    rows = [
        (it.name, it.unit, number(it.value), str(it.bar) if it.bar else "", verdict(it.value, it.bar), it.note)
        for it in checks
    ]
    return table(("figure", "unit", "llmlb", "must reach", "", ""), rows, left=(0, 1, 3, 4, 5))


def median(values: Sequence[float]) -> float | None:
    """None for no values."""
    return statistics.median(values) if values else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all (0 to 1) are not above. Raises ValueError for none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


# The document


def _marks(part: str) -> tuple[str, str]:
    return f"<!-- {part}: written by make bench -->", f"<!-- end of {part} -->"


def put(document: str, part: str, title: str, text: str) -> str:
    """The document with the text of a part in place of what stood there; a new part goes to the end.

    Raises ValueError when a part has its begin but not its end.
    """
    begin, end = _marks(part)
    body = f"{begin}\n\n{text.strip()}\n\n{end}"
    before, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n## {title}\n\n{body}\n"
    _, closed, after = rest.partition(end)
    if not closed:
        raise ValueError(f"the document has the begin of part {part!r} but not its end")
    return f"{before}{body}{after}"
