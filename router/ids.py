"""Ids of requests and answers: 128 bits of chance, drawn from the system many at a time."""

from __future__ import annotations

import os

_AT_ONCE = 256
"""Ids a draw: one system call for so many."""
_drawn: list[str] = []


def new_id() -> str:
    """32 hex digits that nobody can guess."""
    try:
        return _drawn.pop()
    except IndexError:
        pool = os.urandom(16 * _AT_ONCE).hex()
        _drawn.extend([pool[at : at + 32] for at in range(32, len(pool), 32)])
        return pool[:32]


# A process made by forking would go on with the same ones.
os.register_at_fork(after_in_child=_drawn.clear)
