"""Numbers in query strings: digits and nothing else. pydantic would take ``1_0``, ``+1``, ``1.0`` and blanks too."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BeforeValidator

from llmlb.bus.errors import InvalidRequest

_DIGITS = re.compile(r"[0-9]{1,19}")


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ValueError("must be a whole number")
    return value


DIGITS = BeforeValidator(_digits)
"""Of a whole number from 0, as text; stands behind the bounds: ``Annotated[int, Field(ge=0), DIGITS]``."""


def page_limit(given: str | None, usual: int, most: int) -> int:
    """Items of a page as ``limit`` asks for them, ``usual`` where it does not. Raises InvalidRequest."""
    if given is None:
        return usual
    if not _DIGITS.fullmatch(given) or not 1 <= int(given) <= most:
        raise InvalidRequest(f"limit: must be 1 to {most}", param="limit")
    return int(given)
