"""The engine: llmlb beside llama.cpp's own server (issue 3).

Both servers run at the same time with the same model and flags; one is measured at a time, in turn, so that slow
minutes of the machine hit both. The engine alone, without HTTP and bus, is measured along with them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import llama_cpp

from llmlb.node.store.bundled import bundled_path
from tests.bench import about, llama_server
from tests.bench.engine_memory import memory
from tests.bench.engine_report import METHOD, figures_table, memory_table
from tests.bench.engine_scenarios import (
    CONTEXT,
    OURS,
    SLOTS,
    THEIRS,
    Bench,
    EngineAlone,
    Server,
    Target,
    idle_share,
    warm_up,
)
from tests.bench.prompts import PromptMaker
from tests.support.cluster import cluster

TITLE = "Engine"
BATCH = 512
"""Of a decode call: what llmlb's engine uses, and llama-server's default for the physical batch."""
REPETITIONS = 7
QUICK_REPETITIONS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--repetitions", type=int, help=f"of every measurement ({REPETITIONS}); at least 5 for a result")
    group.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each engine")
    group.add_argument("--llama-server", type=Path, default=os.environ.get("LLAMA_SERVER"), help="use this binary")
    group.add_argument("--spin", default="300", help="GOMP_SPINCOUNT of llama-server; llmlb's engine sets 300")
    group.add_argument("--no-memory", action="store_true", help="leave out the 1,000 requests")
    group.add_argument("--no-engine", action="store_true", help="leave out the engine alone")


@contextlib.contextmanager
def engine_alone(threads: int) -> Iterator[EngineAlone]:
    """The engine's process, ready."""
    command = [sys.executable, "-m", "tests.bench.engine_child", str(SLOTS), str(CONTEXT), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdin is not None
        assert popen.stdout is not None
        if not popen.stdout.readline():
            raise RuntimeError("the engine did not start")
        try:
            yield EngineAlone(popen)
        finally:
            popen.stdin.close()


def check_build(binary: Path) -> str:
    """Both must be built for the same CPU. What llama.cpp says of it."""
    ours = llama_server.features(llama_cpp.llama_print_system_info().decode())
    theirs = llama_server.features(llama_server.system_info(binary))
    if ours != theirs:
        raise RuntimeError(f"not built alike: llama-cpp-python {sorted(ours)}, llama-server {sorted(theirs)}")
    return ", ".join(sorted(ours))


def _words(settings: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _settings(threads: int) -> dict[str, str]:
    return {
        "LLMLB_NUM_PARALLEL": str(SLOTS),
        "LLMLB_CONTEXT_LENGTH": str(CONTEXT),
        "LLMLB_NUM_THREADS": str(threads),
        "LLMLB_KEEP_ALIVE": "-1",
    }


def _flags(threads: int) -> list[str]:
    """Of llama-server, to match."""
    flags = ["-np", str(SLOTS), "-c", str(SLOTS * CONTEXT), "--no-kv-unified", "-t", str(threads), "-tb", str(threads)]
    return [*flags, "-b", str(BATCH), "-ub", str(BATCH), "-fa", "on", "-ngl", "0", "--cache-ram", "0", "--no-ui"]


def run(arguments: argparse.Namespace) -> str:
    """Measure; the text of this part."""
    model = bundled_path()
    if model is None:
        raise RuntimeError("the demo model is not installed; make setup does that")
    repetitions = arguments.repetitions or (QUICK_REPETITIONS if arguments.quick else REPETITIONS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmlb-bench-")))
        targets, lines = _start(stack, folder, model, arguments)
        prompts = PromptMaker(model)
        for target in targets:
            asyncio.run(warm_up(target, prompts))
        idle = idle_share(targets)
        bench = Bench(prompts, targets)
        measured = about.Measured()
        asyncio.run(bench.run(repetitions))
        lines = [
            *about.lines(f"llama-cpp-python {version('llama-cpp-python')}; llama-server from the source in its sdist"),
            f"- Model: {model.name}",
            f"- Medians of {repetitions}",
            measured.line(),
            "- Share of a core while idle: " + ", ".join(f"{name} {share:.1%}" for name, share in idle.items()),
            *lines,
        ]
        report = ["\n".join(lines), figures_table(bench.results)]
        if not arguments.no_memory and not arguments.quick:
            assert isinstance(targets[0], Server)
            report.append("### Memory\n\n" + memory_table(asyncio.run(memory(targets[0], prompts, model))))
    return "\n\n".join([*report, f"### Method\n\n{METHOD}"])


def _start(
    stack: contextlib.ExitStack, folder: Path, model: Path, arguments: argparse.Namespace
) -> tuple[list[Target], list[str]]:
    """Everything that is measured, ready, llmlb first; and how it was started."""
    settings, flags = _settings(arguments.threads), _flags(arguments.threads)
    theirs = {"GOMP_SPINCOUNT": arguments.spin} if arguments.spin else {}
    binary = Path(arguments.llama_server) if arguments.llama_server else llama_server.find_or_build()
    it = stack.enter_context(cluster(folder, **settings))
    serve = it.start("serve", home="one").wait_ready()
    assert serve.router_port is not None
    targets: list[Target] = [Server(OURS, serve.router_port, serve.popen.pid)]
    lines = [f"- llmlb: `{_words(settings)} llmlb serve`"]
    if binary is None:
        print("no cmake: nothing to compare with", file=sys.stderr)
    else:
        lines.insert(0, f"- CPU features of both builds: {check_build(binary)}")
        lines.append(f"- llama-server: `{_words(theirs)} llama-server {' '.join(flags)}`")
        log = folder / "llama-server.log"
        port, popen = stack.enter_context(llama_server.running(binary, model, flags, theirs, log))
        targets.append(Server(THEIRS, port, popen.pid))
    if not arguments.no_engine:
        targets.append(stack.enter_context(engine_alone(arguments.threads)))
    return targets, lines
