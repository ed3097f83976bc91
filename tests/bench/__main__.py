"""``make bench``: what llmlb costs beside others, as ratios in one run. Not a timed test: it prints tables with bars.

The engine beside llama.cpp's own server, the router beside other routers, pulls beside curl, the command line, and
the catalog of models.
"""

from __future__ import annotations

import argparse
import logging
import resource
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

from tests.bench import cli_bench, engine_bench, gateway_bench, hub_bench, pull_bench, report, router_bench

log = logging.getLogger("tests.bench")

DOCUMENT = Path("docs/benchmarks.md")
PARTS: dict[str, ModuleType] = {
    "engine": engine_bench,
    "pull": pull_bench,
    "router": router_bench,
    "gateway": gateway_bench,
    "cli": cli_bench,
    "hub": hub_bench,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; more than once for several")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements: a look, no result")
    parser.add_argument("--write", action="store_true", help=f"write each part that ran into {DOCUMENT}")
    for part in PARTS.values():
        part.add_arguments(parser)
    return parser.parse_args()


def more_files() -> None:
    """As many open files as the system allows, for the children too: 2,000 streams are 4,000 connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that nothing it started stays behind
    more_files()
    failed = [name for name in arguments.only or PARTS if not measured(name, arguments)]
    return 1 if failed else 0


def measured(name: str, arguments: argparse.Namespace) -> bool:
    """Measure a part, print it and write it down; False when it can't be measured."""
    part, began = PARTS[name], time.monotonic()
    try:
        text = part.run(arguments)
    except Exception:  # the other parts are measured all the same
        log.exception("could not be measured: %s", name)
        return False
    print(f"## {part.TITLE}\n\n{text}\n", flush=True)
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if arguments.write:
        DOCUMENT.write_text(report.put(DOCUMENT.read_text(), name, part.TITLE, text))
    return True


if __name__ == "__main__":
    sys.exit(main())
