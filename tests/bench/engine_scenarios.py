"""What is asked of the engine in ``make bench``: of llmlb, llama.cpp's own server, and the engine alone."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from tests.bench import machine
from tests.bench.client import Answer, Messages, Stream, begin
from tests.bench.prompts import PromptMaker
from tests.support.cluster import wait_until

SLOTS = 8
CONTEXT = 4096
STREAM_TOKENS = 160
RUNNING_TOKENS = 1200
LONG_PROMPT = 2000
SETTLE_S = 0.3
SHORT_REQUESTS = 1000

OURS, THEIRS, ALONE = "llmlb", "llama-server", "engine alone"


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
        self.model = wait_until(self._first_model, 30, f"{name} has a model")

    def _first_model(self) -> str:
        """Empty while it has none: llmlb is ready before its node has told what it has."""
        models = httpx.get(f"http://127.0.0.1:{self.port}/v1/models").json()["data"]
        return str(models[0]["id"]) if models else ""

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
            raise RuntimeError(
                f"{target.name} counts {one.prompt_tokens} and {two.prompt_tokens} tokens, not 30 and 930"
            )
        if max(one.cached_tokens, two.cached_tokens) > 8:
            raise RuntimeError(f"{target.name} knew a prompt that should be new")
        answers = {"short": one, "cold": two, "again": three, "next": four}
        return {key: 1000 * answer.first_token_s for key, answer in answers.items()}

    async def one_stream(self, target: Target) -> Values:
        (answer,) = await target.ask([self.prompts.story()], STREAM_TOKENS)
        await asyncio.sleep(SETTLE_S)
        (long,) = await target.ask([self.prompts.cold(930)], STREAM_TOKENS)
        for one in (answer, long):
            if one.tokens < STREAM_TOKENS // 4:
                raise RuntimeError(f"{target.name} said {one.tokens} tokens only: {one.text!r}")
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
            raise RuntimeError(f"no stream of {target.name} ran for long enough")
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
