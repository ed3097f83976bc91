"""``llmlb doctor``: every check beside the others, the verdicts in their order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from llmlb.bus.settings import Settings
from llmlb.cli import checks
from llmlb.cli.checks import Verdict
from llmlb.cli.exit_codes import GENERAL, OK
from llmlb.cli.options import show_json

Check = Callable[[Settings], list[Verdict]]


def run(settings: Settings, *, as_json: bool, chosen: Sequence[Check] = checks.ALL) -> int:
    """Print the verdicts; 1 when one of them is ``fail``."""
    logging.getLogger().addHandler(logging.NullHandler())  # what the checked parts would log is in the verdicts
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
        for found in pool.map(lambda check: _checked(check, settings), chosen):
            verdicts += found
            if not as_json:
                print("\n".join(line(verdict) for verdict in found), flush=True)
    if as_json:
        show_json([asdict(verdict) for verdict in verdicts])
    return GENERAL if any(verdict.level == "fail" for verdict in verdicts) else OK


def _checked(check: Check, settings: Settings) -> list[Verdict]:
    try:
        return check(settings)
    except Exception as error:  # noqa: BLE001  one check that breaks must not hide what the others found
        return [Verdict("warn", check.__name__, f"could not be checked: {type(error).__name__}: {error}")]


def line(verdict: Verdict) -> str:
    """``fail  node port       32769 is held by another program → end it, or …``"""
    todo = f" → {verdict.todo}" if verdict.todo else ""
    return f"{verdict.level:<5} {verdict.check:<15} {verdict.found}{todo}"
