"""Numbers in query strings: digits and nothing else. pydantic would take ``1_0``, ``+1``, ``1.0`` and blanks too."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BeforeValidator

_DIGITS = re.compile(r"[0-9]{1,19}")


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ValueError("must be a whole number")
    return value


DIGITS = BeforeValidator(_digits)
"""Of a whole number from 0, as text; stands behind the bounds: ``Annotated[int, Field(ge=0), DIGITS]``."""
