"""``make fuzz``: longer than the test, and other requests each time.

``python -m tests.fuzz [--seed N] [--minutes N] [--role router|node]``
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import fuzz, target


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="else another one each time")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each gateway")
    parser.add_argument("--examples", type=int, default=200, help="for each operation")
    parser.add_argument("--only", default=".", help="a regular expression for paths")
    parser.add_argument("--role", choices=("router", "node"), action="append")
    parser.add_argument("--workers", type=int, default=1, help="2 find more, and at times what is wrong in Hypothesis")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder, target(Path(folder)) as it:
        for role in given.role or ("router", "node"):
            code, report = fuzz(
                *(it, role),
                seed=given.seed,
                examples=given.examples,
                max_time_s=max(1, int(given.minutes * 60)),
                only=given.only,
                workers=given.workers,
            )
            print(report)
            failed = failed or code != 0
        trouble = it.trouble()
        print("\n".join(["In the output of the server:", *trouble]) if trouble else "")
    return int(failed or bool(trouble))


if __name__ == "__main__":
    sys.exit(main())
