"""``make fuzz``: longer than the test. ``python -m tests.fuzz [--seed N] [--minutes N] [--role router|node]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import fuzz, target


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each gateway")
    parser.add_argument("--examples", type=int, default=200, help="for each operation")
    parser.add_argument("--only", default=".", help="a regular expression for paths")
    parser.add_argument("--role", choices=("router", "node"), action="append")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder, target(Path(folder)) as it:
        for role in given.role or ("router", "node"):
            code, report = fuzz(
                *(it, role),
                seed=given.seed,
                examples=given.examples,
                max_time_s=int(given.minutes * 60),
                only=given.only,
            )
            print(report)
            failed = failed or code != 0
        failed = failed or "Traceback" in it.process.output()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
