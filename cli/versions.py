"""Versions of the command and of the server it talks to. Pure."""

from __future__ import annotations

import re

import llmlb


def _parts(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


def mismatch(server: str, address: str, own: str = llmlb.__version__) -> str | None:
    """What to say when they differ in more than the last number; None where they fit, or one can't be read."""
    mine, theirs = _parts(own), _parts(server)
    if mine is None or theirs is None or mine == theirs:
        return None
    which = "newer" if theirs > mine else "older"
    advice = "update this llmlb" if theirs > mine else "update the server"
    return f"llmlb at {address} is {which} ({server}) than this command ({own}): {advice} if something does not work"
