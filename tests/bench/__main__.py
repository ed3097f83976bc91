"""``make bench``: llmlb beside llama.cpp's own server. Not a timed test: it prints a table with ratios.

Both servers run at the same time with the same model and flags; one is measured at a time, in turn, so that slow
minutes of the machine hit both. The engine alone, without HTTP and bus, is measured along with them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import gc
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import httpx
import llama_cpp

from llmlb.node.memory import kv_bytes_per_token
from llmlb.node.store.bundled import bundled_path
from llmlb.node.store.gguf import read_gguf
from tests.bench import llama_server, machine
from tests.bench.client import Answer, Messages, Stream, begin
from tests.bench.prompts import PromptMaker
from tests.support.cluster import cluster

SLOTS = 8
CONTEXT = 4096
BATCH = 512
"""Of a decode call: what llmlb's engine uses, and llama-server's default for the physical batch."""
STREAM_TOKENS = 160
RUNNING_TOKENS = 1200
LONG_PROMPT = 2000
SETTLE_S = 0.3
SHORT_REQUESTS = 1000
MEMORY_LIMIT_MB = 150
GROWTH_LIMIT_MB = 5
"""Noise of allocators; a kilobyte lost by each of 1,000 requests stays below it, ten do not."""
DOCUMENT = Path("docs/benchmarks.md")

OURS, THEIRS, ALONE = "llmlb", "llama-server", "engine alone"


@dataclass(frozen=True)
class Figure:
    """A row of the table. ``bar``: what our median divided by llama-server's must reach."""

    name: str
    unit: str
    bar: float | None = None
    more_is_better: bool = False

    def holds(self, ratio: float) -> bool | None:
        if self.bar is None:
            return None
        return ratio >= self.bar if self.more_is_better else ratio <= self.bar


FIGURES = {
    "short": Figure("time to first token, 30-token prompt, idle", "ms", 1.10),
    "cold": Figure("time to first token, 930-token prompt, cold", "ms", 1.05),
    "again": Figure("time to first token, the same prefix again", "ms", 1.15),
    "one": Figure("one stream", "tokens/s", 0.97, more_is_better=True),
    "eight": Figure("8 streams, total", "tokens/s", 1.00, more_is_better=True),
    "gap": Figure("worst gap of 4 running streams when a 2,000-token prompt arrives", "ms", 1.00),
    "next": Figure("time to first token, next turn after 930 tokens", "ms"),
    "one_long": Figure("one stream after a 930-token prompt", "tokens/s", more_is_better=True),
    "late": Figure("time to first token of that 2,000-token prompt", "ms"),
    "cpu": Figure("CPU time a token, 8 streams, all processes", "ms"),
    "cpu_around": Figure("of it outside the engine's process", "ms"),
}


class Target:
    """What is measured: something that answers chat requests."""

    name: str
    pid: int

    async def ask(self, prompts: list[Messages], max_tokens: int) -> list[Answer]:
        """All of them together, to their ends."""
        raise NotImplementedError

    def engine_pid(self) -> int:
        """The process that computes."""
        return self.pid


class Server(Target):
    """A server with OpenAI's chat completions."""

    def __init__(self, name: str, port: int, pid: int) -> None:
        self.name, self.port, self.pid = name, port, pid
        self.model = str(httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["id"])

    async def begin(self, prompt: Messages, max_tokens: int) -> Stream:
        return await begin(self.port, self.model, prompt, max_tokens)

    async def ask(self, prompts: list[Messages], max_tokens: int) -> list[Answer]:
        streams = [await self.begin(prompt, max_tokens) for prompt in prompts]
        return [await stream.answer() for stream in streams]

    def engine_pid(self) -> int:
        workers = [one for one in machine.family(self.pid) if "llmlb.node.engine.worker" in machine.command(one)]
        return workers[0] if workers else self.pid


class EngineAlone(Target):
    """The engine, driven without HTTP and bus."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.name, self.pid, self._popen = ALONE, popen.pid, popen

    async def ask(self, prompts: list[Messages], max_tokens: int) -> list[Answer]:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        line = json.dumps([{"messages": prompt, "max_tokens": max_tokens} for prompt in prompts])
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()
        return [Answer(**one) for one in json.loads(await asyncio.to_thread(self._popen.stdout.readline))]


Values = dict[str, float]
Results = dict[str, dict[str, list[float]]]


@dataclass
class Bench:
    """One run."""

    prompts: PromptMaker
    targets: list[Target]
    results: Results = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    async def first_tokens(self, target: Target) -> Values:
        """Prompts that no cache knows, then one that it does, then the next turn of that conversation."""
        short, cold = self.prompts.cold(30), self.prompts.cold(930)
        (one,) = await target.ask([short], 8)
        await asyncio.sleep(SETTLE_S)
        (two,) = await target.ask([cold], 8)
        await asyncio.sleep(SETTLE_S)
        (three,) = await target.ask([cold], 8)
        await asyncio.sleep(SETTLE_S)
        turn = [*cold, {"role": "assistant", "content": three.text}, {"role": "user", "content": "Tell me more."}]
        (four,) = await target.ask([turn], 8)
        if (one.prompt_tokens, two.prompt_tokens) != (30, 930):
            raise SystemExit(f"{target.name} counts {one.prompt_tokens} and {two.prompt_tokens} tokens, not 30 and 930")
        if max(one.cached_tokens, two.cached_tokens) > 8:
            raise SystemExit(f"{target.name} knew a prompt that should be new")
        answers = {"short": one, "cold": two, "again": three, "next": four}
        return {key: 1000 * answer.first_token_s for key, answer in answers.items()}

    async def one_stream(self, target: Target) -> Values:
        (answer,) = await target.ask([self.prompts.story()], STREAM_TOKENS)
        await asyncio.sleep(SETTLE_S)
        (long,) = await target.ask([self.prompts.cold(930)], STREAM_TOKENS)
        for one in (answer, long):
            if one.tokens < STREAM_TOKENS // 2:
                raise SystemExit(f"{target.name} said {one.tokens} tokens only: {one.text!r}")
        return {"one": answer.tokens_per_s, "one_long": long.tokens_per_s}

    async def eight_streams(self, target: Target) -> Values:
        """Tokens of all by the time from the first request to the last token."""
        pids, engine = machine.family(target.pid), target.engine_pid()
        before = {pid: machine.cpu_s(pid) for pid in pids}
        answers = await target.ask([self.prompts.story() for _ in range(SLOTS)], STREAM_TOKENS)
        used = {pid: machine.cpu_s(pid) - before[pid] for pid in pids}
        tokens = sum(answer.tokens for answer in answers)
        seconds = max(answer.times[-1] for answer in answers) - min(answer.sent_at for answer in answers)
        cpu = 1000 * sum(used.values()) / tokens
        around = 1000 * (sum(used.values()) - used[engine]) / tokens
        return {"eight": tokens / seconds, "cpu": cpu, "cpu_around": around}

    async def gap(self, target: Target) -> Values:
        """Four streams run; a long prompt arrives. The longest wait of any of them until its first token is there."""
        if not isinstance(target, Server):
            return {}
        running = [await target.begin(self.prompts.story(), RUNNING_TOKENS) for _ in range(4)]
        while any(stream.events < 16 for stream in running):
            await asyncio.sleep(0.02)
        late = await target.begin(self.prompts.cold(LONG_PROMPT), 8)
        arrived = await late.answer()
        for stream in running:
            stream.close()
        gaps = []
        for stream in running:
            answer = stream.read()
            if answer.finish_reason is not None:
                continue  # it was over before; the others had the same wait
            times = [at for at in answer.times if at <= arrived.times[0]]
            times.append(next((at for at in answer.times if at > arrived.times[0]), arrived.times[0]))
            gaps += [b - a for a, b in itertools.pairwise(times) if b > late.sent_at]
        if not gaps:
            raise SystemExit(f"no stream of {target.name} ran for long enough")
        await asyncio.sleep(1)
        return {"gap": 1000 * max(gaps), "late": 1000 * arrived.first_token_s}

    async def run(self, repetitions: int) -> None:
        """Every scenario on every target in turn, as often as asked."""
        scenarios: list[Callable[[Target], Awaitable[Values]]] = [
            self.first_tokens,
            self.one_stream,
            self.eight_streams,
            self.gap,
        ]
        for repetition in range(repetitions):
            for scenario in scenarios:
                number = self.prompts.number
                for target in self.targets if repetition % 2 == 0 else reversed(self.targets):
                    await asyncio.sleep(SETTLE_S)
                    self.prompts.number = number  # the same prompts for all
                    gc.collect()
                    gc.disable()
                    values = await scenario(target)
                    gc.enable()
                    said = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
                    print(f"{repetition + 1} {target.name}: {said}", file=sys.stderr, flush=True)
                    for key, value in values.items():
                        self.results[key][target.name].append(value)


def idle_share(targets: list[Target]) -> dict[str, float]:
    """Share of one core that each takes while nobody asks it anything."""
    pids = {target.name: machine.family(target.pid) for target in targets}
    before = {name: sum(map(machine.cpu_s, them)) for name, them in pids.items()}
    began = time.monotonic()
    time.sleep(5)
    seconds = time.monotonic() - began
    return {name: (sum(map(machine.cpu_s, them)) - before[name]) / seconds for name, them in pids.items()}


async def warm_up(target: Target, prompts: PromptMaker) -> None:
    """One request, then wait until the process has nothing more to do (llmlb's engine tests itself when idle)."""
    await target.ask([prompts.story()], 16)
    pid, used = target.engine_pid(), -1.0
    while (now := machine.cpu_s(pid)) - used > 0.05:
        used = now
        await asyncio.sleep(1)


async def many_short(target: Server, prompts: PromptMaker, count: int) -> None:
    """Short requests, eight at a time."""

    async def one() -> None:
        for _ in numbers:
            stream = await target.begin(prompts.story(), 4)
            await stream.answer()

    numbers = iter(range(count))
    async with asyncio.TaskGroup() as group:
        for _ in range(SLOTS):
            group.create_task(one())


@dataclass
class Memory:
    """Resident memory of llmlb's processes, in bytes: before and after the short requests."""

    before: dict[str, machine.Resident]
    after: dict[str, machine.Resident]
    kv: int
    model: int

    @property
    def beyond(self) -> int:
        worker = self.after["worker"]
        return worker.rss - worker.model - self.kv


def processes(server: Server, model: Path) -> dict[str, machine.Resident]:
    """The memory of each of its processes, by what it is."""
    found = {}
    for pid in machine.family(server.pid):
        line = machine.command(pid)
        if pid == server.pid:
            name = "router and node agent"
        elif "llmlb.node.engine.worker" in line:
            name = "worker"
        else:
            name = "bus" if "nats-server" in line else Path(line.split()[0]).name
        found[name] = machine.resident(pid, model)
    return found


async def memory(server: Server, prompts: PromptMaker, model: Path) -> Memory:
    """Use everything once, look, make the short requests, look again."""
    await many_short(server, prompts, 100)
    await asyncio.sleep(2)
    before = processes(server, model)
    await many_short(server, prompts, SHORT_REQUESTS)
    await asyncio.sleep(2)
    header = {key: str(value) for key, value in read_gguf(model).metadata.items()}
    kv = kv_bytes_per_token(header) * CONTEXT * SLOTS
    return Memory(before, processes(server, model), kv, model.stat().st_size)


# Report


def figures_table(results: Results) -> str:
    """Medians, their ratio, and what it must reach."""
    lines = [
        "| figure | unit | llmlb | llama-server | ratio | must reach | | pairs from, to | engine alone |",
        "|---|---|---:|---:|---:|---|---|---|---:|",
    ]
    for key, figure in FIGURES.items():
        ours, theirs, alone = (results[key].get(name, []) for name in (OURS, THEIRS, ALONE))
        cells = [figure.name, figure.unit, _median(ours), _median(theirs)]
        if theirs:
            ratio = statistics.median(ours) / statistics.median(theirs) if any(theirs) else 0.0
            holds = figure.holds(ratio)
            pairs = [a / b for a, b in zip(ours, theirs, strict=True) if b]
            sign = "≥" if figure.more_is_better else "≤"
            cells += [f"{ratio:.2f}" if ratio else "", f"{sign} {figure.bar:.2f}" if figure.bar else ""]
            cells += ["" if holds is None else "ok" if holds else "**not**"]
            cells += [f"{min(pairs):.2f}, {max(pairs):.2f}" if pairs else ""]
        else:
            cells += ["", "", "", ""]
        cells.append(_median(alone))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _median(values: list[float]) -> str:
    if not values:
        return "-"
    middle = statistics.median(values)
    return f"{middle:.1f}" if middle >= 10 else f"{middle:.2f}"


def _words(settings: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def memory_table(it: Memory) -> str:
    lines = [
        f"| process | resident, MB | after {SHORT_REQUESTS:,} short requests, MB | growth, MB |",
        "|---|---:|---:|---:|",
    ]
    for name, after in it.after.items():
        before = it.before[name]
        growth = after.rss - before.rss
        cells = (f"{one / machine.MB:.1f}" for one in (before.rss, after.rss, growth))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    worker = it.after["worker"]
    beyond, growth = it.beyond, worker.rss - it.before["worker"].rss
    lines += [
        "",
        f"Of the worker's {worker.rss / machine.MB:.1f} MB, {worker.model / machine.MB:.1f} MB are pages of the model "
        f"file ({it.model / machine.MB:.1f} MB, mapped, so they count as resident) and {it.kv / machine.MB:.1f} MB are "
        f"the KV cache ({SLOTS} x {CONTEXT} tokens). "
        f"What is beyond both: {beyond / machine.MB:.1f} MB, must be ≤ {MEMORY_LIMIT_MB}: "
        f"{'ok' if beyond <= MEMORY_LIMIT_MB * machine.MB else '**not**'}. "
        f"Growth of the worker: {growth / machine.MB:.1f} MB, noise up to {GROWTH_LIMIT_MB}: "
        f"{'ok' if growth <= GROWTH_LIMIT_MB * machine.MB else '**not**'}.",
    ]
    return "\n".join(lines)


METHOD = """\
Both servers are started with the same model file, threads, slots, context and batch, get one warm-up request each and
stay up for the whole run. One is measured at a time, in turn and in changing order, so that slow minutes of the
machine hit both; the share of a core each takes while idle is printed above. Requests go through the whole path: HTTP,
gateway, bus, worker. The client is the same for both: raw sockets on the same machine, a new connection for each
request, bytes kept with their arrival times and parsed when the answer is over. All requests are greedy.

- *Time to first token*: from sending the request to the first event with text. *Cold*: each prompt begins with other
  words, and the server's own count of cached tokens is checked. *Again*: the same prompt right after.
- *One stream*: tokens by the server's usage, from the first to the last event with text. *8 streams*: tokens of all
  by the time from the first request to the last token.
- *Worst gap*: four streams run, a 2,000-token prompt arrives; the longest time between two events of any stream from
  then until that prompt has its first token.
- *Pairs*: lowest and highest ratio of single measurements next to each other. *Engine alone*: the same requests
  handed to llmlb's engine in a process of its own, without HTTP and bus.
- llama-server runs without its second prompt cache in main memory (`--cache-ram 0`), which would cost it time here.
- Memory is resident memory (`/proc/PID/smaps`). Short requests: 4 tokens each, 8 at a time.
"""


@contextlib.contextmanager
def engine_alone(threads: int) -> Iterator[EngineAlone]:
    """The engine's process, ready."""
    command = [sys.executable, "-m", "tests.bench.engine_child", str(SLOTS), str(CONTEXT), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdin is not None
        assert popen.stdout is not None
        if not popen.stdout.readline():
            raise SystemExit("the engine did not start")
        try:
            yield EngineAlone(popen)
        finally:
            popen.stdin.close()


def check_build(binary: Path) -> str:
    """Both must be built for the same CPU. What llama.cpp says of it."""
    ours = llama_server.features(llama_cpp.llama_print_system_info().decode())
    theirs = llama_server.features(llama_server.system_info(binary))
    if ours != theirs:
        raise SystemExit(f"not built alike: llama-cpp-python {sorted(ours)}, llama-server {sorted(theirs)}")
    return ", ".join(sorted(ours))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7, help="of every measurement; at least 5 for a result")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each engine")
    parser.add_argument("--llama-server", type=Path, default=os.environ.get("LLAMA_SERVER"), help="use this binary")
    parser.add_argument("--spin", default="300", help="GOMP_SPINCOUNT of llama-server; llmlb's engine sets 300")
    parser.add_argument("--no-memory", action="store_true", help="leave out the 1,000 requests")
    parser.add_argument("--no-engine", action="store_true", help="leave out the engine alone")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT}")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that nothing it started stays behind
    model = bundled_path()
    if model is None:
        raise SystemExit("the demo model is not installed; make setup does that")
    binary = Path(arguments.llama_server) if arguments.llama_server else llama_server.find_or_build()
    threads = str(arguments.threads)
    flags = ["-np", str(SLOTS), "-c", str(SLOTS * CONTEXT), "--no-kv-unified", "-t", threads, "-tb", threads]
    flags += ["-b", str(BATCH), "-ub", str(BATCH), "-fa", "on", "-ngl", "0", "--cache-ram", "0", "--no-ui"]
    theirs = {"GOMP_SPINCOUNT": arguments.spin} if arguments.spin else {}
    settings = {
        "LLMLB_NUM_PARALLEL": str(SLOTS),
        "LLMLB_CONTEXT_LENGTH": str(CONTEXT),
        "LLMLB_NUM_THREADS": threads,
        "LLMLB_KEEP_ALIVE": "-1",
    }
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    lines = [
        f"- Machine: {machine.cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- Versions: llmlb {version('llmlb')} ({commit or 'no commit'}), Python {platform.python_version()}, "
        f"llama-cpp-python {version('llama-cpp-python')}; llama-server from the source in its sdist",
        f"- Model: {model.name}",
        f"- Medians of {arguments.repetitions}",
    ]
    prompts = PromptMaker(model)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmlb-bench-")))
        targets: list[Target] = []
        it = stack.enter_context(cluster(folder, **settings))
        serve = it.start("serve", home="one").wait_ready()
        assert serve.router_port is not None
        ours = Server(OURS, serve.router_port, serve.popen.pid)
        targets.append(ours)
        if binary is None:
            print("no cmake: nothing to compare with", file=sys.stderr)
        else:
            lines.append(f"- CPU features of both builds: {check_build(binary)}")
            port, popen = stack.enter_context(
                llama_server.running(binary, model, flags, theirs, folder / "llama-server.log")
            )
            targets.append(Server(THEIRS, port, popen.pid))
        if not arguments.no_engine:
            targets.append(stack.enter_context(engine_alone(arguments.threads)))
        for target in targets:
            asyncio.run(warm_up(target, prompts))
        idle = idle_share(targets)
        bench = Bench(prompts, targets)
        stolen, ticks = machine.stolen_and_all()
        asyncio.run(bench.run(arguments.repetitions))
        stolen_now, ticks_now = machine.stolen_and_all()
        lines += [
            f"- CPU time the host took away during the run: {(stolen_now - stolen) / (ticks_now - ticks):.1%}; "
            f"load of the last minute at its end: {os.getloadavg()[0]:.1f}",
            "- Share of a core while idle: " + ", ".join(f"{name} {share:.1%}" for name, share in idle.items()),
            f"- llmlb: `{_words(settings)} llmlb serve`",
            f"- llama-server: `{_words(theirs)} llama-server {' '.join(flags)}`",
        ]
        report = ["\n".join(lines), figures_table(bench.results)]
        print("\n\n".join(report), flush=True)
        if not arguments.no_memory:
            report.append("## Memory\n\n" + memory_table(asyncio.run(memory(ours, prompts, model))))
            print(f"\n{report[-1]}")
    text = "\n\n".join(report)
    if arguments.write:
        head = "# Benchmarks\n\nWritten by `make bench ARGS=--write`.\n\n"
        DOCUMENT.write_text(f"{head}{text}\n\n## Method\n\n{METHOD}")


if __name__ == "__main__":
    main()
