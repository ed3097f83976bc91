"""Labels of nodes: short words that people give them, such as ``gpu``, ``zone=b`` or ``team/blue``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST = 32
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=/-]{0,62}")


def checked(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels, each once, in their order. Raises ValueError for one that is none, or more than 32."""
    found = tuple(dict.fromkeys(label.strip() for label in labels if label.strip()))
    for label in found:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label: letters, digits and . _ = / - only, at most 63")
    if len(found) > MOST:
        raise ValueError(f"{len(found)} labels are too many: at most {MOST}")
    return found
