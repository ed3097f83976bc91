"""Pulls beside curl and sha256sum, what kill -9 costs, and the commands about models (issue 4)."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmlb.node.store.installed import Store
from tests.bench import about, commands, report
from tests.bench.pull_site import Site, Taken, site
from tests.bench.report import Bar, Check
from tests.support.cluster import cluster
from tests.support.pulls import gguf_bytes
from tests.unit.node.store_files import pull as install

TITLE = "Pulls"
MB = 1_000_000
MIB = 1024 * 1024
SIZES = (400 * MB, 2020 * MB)
"""A small model, of which what does not grow with the size is a large part; and one of 3 billion parameters in Q4_K_M,
as in the README's example."""
QUICK_SIZE = 60 * MB
REPETITIONS = 5
KILLS_AT = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the file that are out when the node is killed."""
MODELS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pulls")
    group.add_argument("--pull-mb", type=int, help=f"size of the file ({', '.join(str(each // MB) for each in SIZES)})")
    group.add_argument("--pulls", type=int, help=f"repetitions ({REPETITIONS})")
    group.add_argument("--pull-folder", type=Path, help="where everything is written (the folder for temporary files)")


def run(arguments: argparse.Namespace) -> str:
    """Measure; the text of this part."""
    measured = about.Measured()
    given = (arguments.pull_mb * MB,) if arguments.pull_mb else (QUICK_SIZE,) if arguments.quick else SIZES
    repetitions = arguments.pulls or (2 if arguments.quick else REPETITIONS)
    with tempfile.TemporaryDirectory(prefix="llmlb-bench-", dir=arguments.pull_folder) as name:
        folder = Path(name)
        tables, checks = [], []
        for size in given:
            (where := folder / f"pull-{size}").mkdir()
            with site(where, size) as it:
                table, more = _against_curl(it, repetitions)
                if size == given[0]:
                    more += _kills(it, KILLS_AT[1:4:2] if arguments.quick else KILLS_AT)
            tables.append(table)
            checks += more
        checks += _commands(folder / "store", quick=arguments.quick)
    curl = commands.version("curl")
    lines = [*about.lines(curl), f"- Medians of {repetitions}", measured.line()]
    return "\n\n".join(["\n".join(lines), report.checks_table(checks), *tables, f"### Method of the pulls\n\n{METHOD}"])


def _against_curl(it: Site, repetitions: int) -> tuple[str, list[Check]]:
    it.pull()  # what is read and compiled once
    it.curl()
    taken: dict[str, list[Taken]] = defaultdict(list)
    for number in range(repetitions):
        for name, one in {"pull": it.pull(), **it.curl()}.items():
            taken[name].append(one)
        said = ", ".join(f"{name} {them[-1].wall:.3f} s, CPU {them[-1].cpu:.3f} s" for name, them in taken.items())
        print(f"{number + 1} {said}", file=sys.stderr, flush=True)
    return _takes_table(it.size, taken), ratios(taken, it.size)


def ratios(taken: Mapping[str, Sequence[Taken]], size: int) -> list[Check]:
    """Medians of the ratios of measurements next to each other."""
    pulls, curls, sums = taken["pull"], taken["curl"], taken["sha256sum"]
    same = [
        sum(taken[name][number].wall for name in ("curl", "sync", "sha256sum")) / pull.wall
        for number, pull in enumerate(pulls)
    ]
    speeds = [curl.wall / pull.wall for pull, curl in zip(pulls, curls, strict=True)]
    work = [pull.cpu / (curl.cpu + summed.cpu) for pull, curl, summed in zip(pulls, curls, sums, strict=True)]
    return [
        Check(
            f"speed of a pull of {size / MB:,.0f} MB, sha256 included, ÷ curl",
            "",
            report.median(speeds),
            Bar(0.8, True),
            _range(speeds),
        ),
        Check("  the same, ÷ curl and then sync and sha256sum", "", report.median(same), None, _range(same)),
        Check("CPU of a pull ÷ (curl + sha256sum)", "", report.median(work), Bar(1.5), _range(work)),
    ]


def _range(values: list[float]) -> str:
    return f"{report.number(min(values))} to {report.number(max(values))}"


def _takes_table(size: int, taken: Mapping[str, Sequence[Taken]]) -> str:
    rows = []
    for name, them in taken.items():
        wall, cpu = report.median([it.wall for it in them]), report.median([it.cpu for it in them])
        speed = size / MB / wall if wall else None
        rows.append((name, report.number(wall), report.number(speed), report.number(cpu)))
    return report.table((f"{size / MB:,.0f} MB", "time, s", "MB/s", "CPU, s"), rows)


def _kills(it: Site, shares: tuple[float, ...]) -> list[Check]:
    twice = [it.fetched_twice(share) / MIB for share in shares]
    note = ", ".join(f"{value:.1f} at {share:.0%}" for share, value in zip(shares, twice, strict=True))
    return [Check("fetched twice after kill -9 of the node, worst", "MiB", max(twice), Bar(8), note)]


def _commands(folder: Path, *, quick: bool) -> list[Check]:
    """Of a node with many models."""
    store = Store(folder / "node" / "models")
    for number in range(MODELS):
        name = f"bench/model-{number:03}-GGUF"
        install(store, name, {f"model-{number:03}-Q4_K_M.gguf": gguf_bytes(4096, seed=number)})
    runs = 5 if quick else commands.RUNS
    with cluster(folder) as it:
        node = it.start("node", "serve", home="node").wait_ready()
        env = it.environ(folder / "client", LLMLB_HOST=f"127.0.0.1:{node.node_port}")
        bare = commands.bare(env, runs)
        note = f"median of {runs}; python with typer and rich alone: {bare:.3f} s"
        checks = []
        for command in (("list",), ("ps",), ("show", "bench/model-007-GGUF")):
            taken = commands.seconds(commands.llmlb("node", *command), env, runs)
            what = f"`llmlb node {command[0]}` with {MODELS} models in the store, whole process"
            checks.append(Check(what, "s", taken, Bar(0.25), note))
    return checks


METHOD = """\
A hub that speaks the Hub's API and sends with `sendfile`, in a process of its own, on loopback; a real `llmlb node
serve` and a nats-server. Pull and curl take turns, with everything synced to the disk in between and the model removed;
the first of each is not counted.

- *Speed*: from the request for a pull to its success, with the sha256, fsync and everything else; curl's time is that
  of its process, which checks and syncs nothing: the same work is curl, then *sync* and *sha256sum* one after the
  other. *÷*: medians of the ratios of measurements next to each other.
- *CPU*: of the node's process during the pull; of curl's and sha256sum's processes.
- *Fetched twice*: what the hub's sockets took in all, less the file, when the node is killed with `kill -9` while
  bytes flow and started again; what lay in socket buffers counts.
- *Whole process*: `python -m llmlb …` from its start to its end.
"""
