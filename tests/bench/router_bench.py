"""The router: llmlb beside a direct call and other routers, with a thousand nodes, and when nodes die (issue 5)."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.bench import about, report, router_failover, router_report, router_scale
from tests.bench.children import clients
from tests.bench.peers import PEERS
from tests.bench.router_scenarios import QUICK, Scenarios, Sizes
from tests.bench.router_targets import start_all

TITLE = "Router"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [peer.name for peer in PEERS]
    group = parser.add_argument_group("router")
    group.add_argument("--peer", action="append", choices=[*names, "none"], help="compare with this one (all)")
    group.add_argument("--rounds", type=int, help=f"of every measurement ({Sizes().rounds})")
    group.add_argument("--no-compare", action="store_true", help="only scale and failover")
    group.add_argument("--no-scale", action="store_true", help="leave out the thousand nodes")
    group.add_argument("--no-failover", action="store_true", help="leave out the killing")


def run(arguments: argparse.Namespace) -> str:
    """Measure; the text of this part."""
    measured = about.Measured()
    sizes = QUICK if arguments.quick else Sizes()
    rounds = arguments.rounds or sizes.rounds
    sizes = Sizes(**{**vars(sizes), "rounds": rounds})
    checks, parts = [], []
    with tempfile.TemporaryDirectory(prefix="llmlb-bench-") as name:
        folder = Path(name)
        if not arguments.no_compare:
            found, missing = _compare(folder, sizes, set(arguments.peer) if arguments.peer else None)
            checks += router_report.checks(found.values, sizes.held)
            parts.append(router_report.figures_table(found.values))
            notes = [f"- {peer}: not measured, {why}" for peer, why in missing.items()]
            notes += [f"- {what}: {failed} were not whole" for what, failed in found.failed.items()]
            parts += ["\n".join(notes)] if notes else []
        if not arguments.no_scale:
            checks += router_scale.measure(folder / "scale", quick=arguments.quick)
        if not arguments.no_failover:
            checks += router_failover.measure(folder / "failover", quick=arguments.quick)
    versions = [f"{peer.name} {peer.version}" for peer in PEERS]
    versions += [f"Sanic {version('sanic')}", f"nats-py {version('nats-py')}"]
    lines = [*about.lines(", ".join(versions)), f"- Medians of {rounds} rounds", measured.line()]
    return "\n\n".join(
        [
            "\n".join(lines),
            report.checks_table(checks),
            *parts,
            f"### Method of the router's figures\n\n{router_report.METHOD}",
        ]
    )


def _compare(folder: Path, sizes: Sizes, wanted: set[str] | None) -> tuple[Scenarios, dict[str, str]]:
    with contextlib.ExitStack() as stack:
        asking = stack.enter_context(clients(folder))
        targets, missing = start_all(stack, folder, wanted)
        found = Scenarios(asking, sizes)
        found.run(targets)
    return found, missing
